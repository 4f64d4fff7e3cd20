"""Ordered dropout over residual blocks (FN3, section 4: the layers of ResNeXt)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from nestify.graph.graph import Graph
from nestify.graph.groups import Block
from nestify.graph.moves import one_by_one
from nestify.passes.protocol import Data, Role
from nestify.rules import shape_of
from nestify.space import Unit
from nestify.support.arguments import check_fields, one_of, real, whole

__all__ = ["Fn3Layer"]

_DRAW = "uniform-mixture"  # an octave of widths is a share of the cost; an octave of depths is not


@dataclass(frozen=True, slots=True)
class Fn3Layer:
    """Units count the residual blocks that are kept; the last block is dropped first.

    ``per`` is ``net`` (one unit for all blocks: FN3's reading) or ``stage`` (one for each run of
    blocks whose sums have one shape). ``core`` is the always-active share, ``step`` the quantum.
    Projections at the start of a stage stay when their block is dropped; a block that is alone
    in its unit stays, too.

    >>> Fn3Layer(per="stage").name
    'fn3-layer'

    Raises:
        UsageError: an option out of range.
    """

    name: ClassVar[str] = "fn3-layer"
    role: ClassVar[Role] = "chooses"
    core: float = 0.0
    step: int = 1
    per: str = "net"

    def __post_init__(self) -> None:
        per = one_of("net", "stage")
        check_fields(self, f"pass {self.name}", core=real(0, 1), step=whole(1), per=per)

    def apply(self, graph: Graph, data: Data) -> Graph:
        """Add this pass's units to the search space of ``graph``."""
        taken = {group.name for group in graph.groups}
        stacks: dict[str, tuple[Block, ...]] = {}
        for blocks in (found for found in self._stacks(graph) if len(found) > 1):
            stacks[_name(blocks, taken | stacks.keys(), self.per)] = blocks
        moves = {name: one_by_one([b.presence for b in found]) for name, found in stacks.items()}
        return graph.with_units([self._unit(n, len(b)) for n, b in stacks.items()], moves)

    def _stacks(self, graph: Graph) -> Iterator[tuple[Block, ...]]:
        if self.per == "net":
            yield graph.blocks
            return
        sums = {block.exit for block in graph.blocks}
        shapes = {n.name: shape_of(n) for n in graph.nodes if n.name in sums}
        for _, blocks in itertools.groupby(graph.blocks, key=lambda block: shapes[block.exit]):
            yield tuple(blocks)

    def _unit(self, name: str, count: int) -> Unit:
        return Unit(name, "layer", count, max(1, math.ceil(self.core * count)), self.step, _DRAW)


def _name(blocks: tuple[Block, ...], taken: set[str], per: str) -> str:
    """``layers``, after the module that holds them all where there is one."""
    paths = [block.name.split(".") for block in blocks]
    shared = [steps[0] for steps in zip(*paths, strict=False) if len(set(steps)) == 1]
    base = ".".join([*(shared[:-1] if len(blocks) == 1 else shared), "layers"])
    name = "layers" if per == "net" else base
    names = itertools.chain([name], (f"{base}:{i}" for i in itertools.count(2)))
    return next(name for name in names if name not in taken)
