"""Ordered dropout over attention heads: FN3's ordered blocks with a head as the block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nestify.groups import Graph
from nestify.passes.odo import choose_units

__all__ = ["Fn3Head"]


@dataclass(frozen=True, slots=True)
class Fn3Head:
    """``core``: always-active share; ``step``: quantum of sizes; ``where``: ``hidden`` or ``all`` groups."""

    name: ClassVar[str] = "fn3-head"
    core: float = 0.0
    step: int = 1
    where: str = "all"

    def apply(self, graph: Graph) -> Graph:
        return choose_units(graph, "head", core=self.core, step=self.step, where=self.where)
