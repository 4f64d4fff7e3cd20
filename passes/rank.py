"""``rank``: the positions of every elastic dim in the order of their importance.

It changes no function: every tensor moves alike, and sums are added up in another order. Afterwards
the first channels, neurons, heads and paths of a trained network are its best ones, so that what
drops the last ones (``fn3-channel``) prunes it although it was never trained nested. Blocks keep
their order: which comes first is part of the function.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from nestify.errors import UsageError
from nestify.graph.graph import Graph
from nestify.graph.groups import Change
from nestify.graph.rewriter import Rewriter, permuted
from nestify.passes.protocol import Data, Role
from nestify.passes.ranking.importance import METHODS, measure
from nestify.support.arguments import check_fields, one_of

__all__ = ["Rank"]


@dataclass(frozen=True, slots=True)
class Rank:
    """Reorders every elastic group, the most important position first.

    ``by`` is ``magnitude``, ``activation``, ``taylor``, ``hessian`` or ``auto``: the last is
    ``hessian`` where there is ``calibration`` (batches of inputs or (inputs, labels)), and
    ``magnitude`` without. ``loss(outputs, labels)`` is what gradients are taken of; by default
    cross-entropy for integer labels, the squared error for others, and without labels the squared
    distance to the network's own outputs. Groups in :mod:`nestify.passes.ranking.importance`.

    Raises:
        UsageError: an unknown ``by``.
    """

    name: ClassVar[str] = "rank"
    role: ClassVar[Role] = "rewrites"
    reads: ClassVar[frozenset[str]] = frozenset({"calibration", "loss"})
    by: str = "auto"

    def __post_init__(self) -> None:
        check_fields(self, "pass rank", by=one_of(*METHODS))

    def without_data(self) -> Rank:
        """The pass that makes the same graph of weights alone, in another order."""
        return replace(self, by="magnitude")

    def apply(self, graph: Graph, data: Data) -> Graph:
        """Put the positions of every group of ``graph`` in order.

        Raises:
            UsageError: ``by`` needs data that is not there, or there is no group.
        """
        edit = Rewriter(graph)
        if not graph.groups:
            raise UsageError("rank finds no elastic dim; see with `nestify inspect` why")
        batches = None if data.calibration is None else list(data.calibration)
        found = measure(graph, self.by, batches, data.loss)
        orders = {group.dim: found.scores[group.name].order for group in graph.groups}
        for name, tensor in permuted(graph, orders).items():
            edit.replace_tensor(name, tensor)
        count = len(graph.groups)
        what = f"{count} group{'s' * (count != 1)} in the order of importance by {found.how}"
        return edit.finish((Change("rank", "", what, preserves=True),), preserves=True)
