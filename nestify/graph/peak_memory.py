"""The peak of live activations: how the bytes of live tensors change along the graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import fx

from nestify.dims import Dim
from nestify.graph.graph import Graph
from nestify.graph.liveness import PresenceDims, sums_of_blocks
from nestify.graph.memory import shared_operands
from nestify.graph.polynomials import Polynomial, times, total
from nestify.rules import Dims

__all__ = ["peak_changes"]

Volume = Callable[[Dims], Polynomial]
Dtypes = Mapping[torch.dtype, torch.dtype]


def peak_changes(
    graph: Graph, volume: Volume, presence: PresenceDims, dtypes: Dtypes
) -> list[Polynomial]:
    """How the bytes of live tensors change from one moment that may be the peak to the next.

    A tensor lives from the node that makes it to the last node that reads it. Of two moments only
    the later may be the peak where no size shrinks between them, only the earlier where none grows.
    """
    changes: list[Polynomial] = []
    change: Polynomial = {}
    for born, dead in _Storages(graph, volume, presence, dtypes).moments():
        change = total([change, *born])
        if any(share > 0 for share in change.values()):
            if changes and all(share > 0 for share in change.values()):
                change = total([changes.pop(), change])
            changes.append(change)
            change = {}
        change = total([change, *(times(size, -1) for size in dead)])
    return changes


class _Moment(NamedTuple):
    """Bytes born at a node, and those that nothing reads after it."""

    born: list[Polynomial]
    dead: list[Polynomial]


class _Storages:
    """The memory of each activation node, which views of it share."""

    def __init__(
        self, graph: Graph, volume: Volume, presence: PresenceDims, dtypes: Dtypes
    ) -> None:
        self.graph, self.volume, self.presence, self.dtypes = graph, volume, presence, dtypes
        self.nodes = [n for n in graph.nodes if n.op not in ("get_attr", "output")]
        self.order = {node: i for i, node in enumerate(self.nodes)}
        self.root: dict[fx.Node, fx.Node] = {}
        self.last: dict[fx.Node, int] = {}
        for node in graph.nodes:
            if node.op == "get_attr":
                continue
            self.root[node] = _storage_root(node, self.root)
            for used in (node, *(s for s in node.all_input_nodes if s.op != "get_attr")):
                self.last[self.root[used]] = self.order.get(node, len(self.nodes))

    def moments(self) -> list[_Moment]:
        """What is born and what dies at each node, in order."""
        moments = [_Moment([], []) for _ in range(len(self.nodes) + 1)]
        handed_on = self._handed_on()
        givers = {self.root[stays]: block for block, stays in handed_on.values()}
        for i, node in enumerate(self.nodes):
            if self.root[node] is not node:
                continue
            there = self.presence.of(node)
            after = tuple(d for d in there if node not in handed_on or d is not handed_on[node][0])
            after += (givers[node],) if node in givers else ()
            moments[i].born.extend(self._bytes(node, there))
            moments[self.last[node]].dead.extend(self._bytes(node, after))
        return moments

    def _handed_on(self) -> dict[fx.Node, tuple[Dim, fx.Node]]:
        """Sums of blocks that take over the memory of what stays, where the block is dropped.

        It then lives on as the sum would. Where it is read later anyway, or has another size, the
        sum counts as a copy.
        """
        found: dict[fx.Node, tuple[Dim, fx.Node]] = {}
        for node, (block, stays) in sums_of_blocks(self.graph).items():
            root, p = self.root[stays], block.presence
            when = [d for d in self.presence.of(node) if d is not p]
            if (
                self.last[root] <= self.order[node]
                and when == list(self.presence.of(root))
                and self._bytes(root, ()) == self._bytes(node, ())
            ):
                found[node] = p, stays
        return found

    def _bytes(self, node: fx.Node, there: tuple[Dim, ...]) -> list[Polynomial]:
        val, dims = node.meta["val"], self.graph.dims[node]
        pairs = zip(val, dims, strict=False) if isinstance(val, list | tuple) else [(val, dims)]
        return [
            times(self.volume((*d, *there)), self.dtypes.get(v.dtype, v.dtype).itemsize)
            for v, d in pairs
            if isinstance(v, torch.Tensor)
        ]


def _storage_root(node: fx.Node, root: Mapping[fx.Node, fx.Node]) -> fx.Node:
    """The node whose memory this one shares: itself, or the base of a view or in-place op."""
    bases = [root[source] for source in shared_operands(node, always=True) if source in root]
    return bases[0] if bases else node
