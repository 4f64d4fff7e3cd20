"""What a masked network writes though its subnet lacks it: statistics of norms, mostly.

Masks stand behind the norms, so that these see channels and blocks that are not there. Sliced, a
subnet leaves what it lacks as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch

from nestify.dims.selection import Keep
from nestify.graph.graph import Graph
from nestify.graph.liveness import bypassed, live_nodes
from nestify.graph.memory import statistics_of, written
from nestify.support.module_tree import counter

__all__ = ["Absent", "Held"]


class Held(NamedTuple):
    """A buffer as it was, and the positions that a subnet has of it: None for none at all."""

    buffer: torch.Tensor
    before: torch.Tensor
    kept: tuple[torch.Tensor, ...] | None

    def put_back(self) -> None:
        """Make what the subnet lacks what it was."""
        now = self.buffer.data  # without a sign of a change: autograd saves statistics of norms
        kept = None if self.kept is None else now[self.kept].clone()
        now.copy_(self.before)
        if kept is not None and self.kept is not None:
            now[self.kept] = kept


class Absent:
    """The buffers of ``graph`` of which a subnet may lack positions, or all where blocks drop.

    A norm that several blocks share is there while one of them is, and then sees them all. Without
    ``positions`` only what is lacked as a whole counts.
    """

    def __init__(self, graph: Graph, *, positions: bool = True) -> None:
        self.graph, self.positions = graph, positions
        self._written = [str(node.target) for node in written(graph)]
        self._norms = {node: statistics_of(node) for node in graph.nodes if statistics_of(node)}

    def hold(self, keep: Keep, tensors: Mapping[str, torch.Tensor]) -> Iterator[Held]:
        """What is to be put back behind a pass of the subnet ``keep`` in training."""
        dropped = self._dropped(keep)
        for name in self._written:
            dims = self.graph.tensor_dims[name]
            full = not self.positions or all(keep.is_full(expr) for expr in dims)
            if name in dropped or not full:
                kept = [keep.indices(expr).to(tensors[name].device) for expr in dims]
                grid = None if name in dropped else torch.meshgrid(*kept, indexing="ij")
                yield Held(tensors[name], tensors[name].detach().clone(), grid)
        for name in dropped:
            counted = tensors.get(counter(name)) if name.endswith("running_mean") else None
            if counted is not None:
                yield Held(counted, counted.clone(), None)

    def _dropped(self, keep: Keep) -> set[str]:
        """The statistics that are of dropped blocks alone."""
        bypass = bypassed(self.graph, keep)
        if not bypass:
            return set()
        live = live_nodes(self.graph, bypass)
        gone = {s for node, of in self._norms.items() if node not in live for s in of}
        stay = {s for node, of in self._norms.items() if node in live for s in of}
        return {str(statistic.target) for statistic in gone - stay}
