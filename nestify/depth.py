"""Liveness: what a subnet still computes when some of its residual blocks are dropped."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import fx

from nestify.dims import Dim
from nestify.groups import Block, Graph
from nestify.rules import is_mutable
from nestify.slicing import Keep

__all__ = ["PresenceDims", "bypassed", "live_nodes", "sums_of_blocks"]

Presence = frozenset[frozenset[Dim]]
"""When a node is computed: one of these sets of blocks is there whole. ``{{}}`` is always."""

ALWAYS: Presence = frozenset([frozenset()])


def sums_of_blocks(graph: Graph) -> dict[fx.Node, tuple[Block, fx.Node]]:
    """The sum of each block that a unit may drop, with the operand that stays without it."""
    blocks = {block.exit: block for stack in graph.stacks.values() for block in stack}
    if not blocks:
        return {}
    by_name = {node.name: node for node in graph.nodes}
    return {by_name[b.exit]: (b, by_name[b.stays]) for b in blocks.values()}


def bypassed(graph: Graph, keep: Keep) -> dict[fx.Node, fx.Node]:
    """The sums whose block ``keep`` drops, each with the node that stands in for it."""
    sums = sums_of_blocks(graph)
    return {node: stays for node, (block, stays) in sums.items() if not keep.size(block.presence)}


def live_nodes(graph: Graph, bypass: Mapping[fx.Node, fx.Node]) -> set[fx.Node]:
    """The nodes that the outputs, and what is written into buffers, depend on."""
    live: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.op in ("output", "placeholder") or is_mutable(node) or node in live:
            live.add(node)
            live.update([bypass[node]] if node in bypass else node.all_input_nodes)
    return live


def _presences(graph: Graph) -> dict[fx.Node, Presence]:
    """When each node is computed, as the blocks that may be dropped decide."""
    sums = sums_of_blocks(graph)
    read: dict[fx.Node, Presence] = {}
    for node in reversed(graph.nodes):
        if node.op in ("output", "placeholder") or is_mutable(node):
            read[node] = ALWAYS
        when = read.setdefault(node, frozenset())
        block, stays = sums.get(node, (None, None))
        for source in node.all_input_nodes:
            needed = when if block is None or source is stays else _and(when, block.presence)
            read[source] = _or(read.get(source, frozenset()), needed)
    return {n: _and(w, sums[n][0].presence) if n in sums else w for n, w in read.items()}


def _and(when: Presence, block: Dim) -> Presence:
    return frozenset(case | {block} for case in when)


def _or(left: Presence, right: Presence) -> Presence:
    """Either, without cases that another one covers."""
    if left == right or not right:
        return left
    cases = left | right
    return frozenset(c for c in cases if not any(other < c for other in cases))


class PresenceDims:
    """Dims that are 1 where a subnet computes a node and 0 where it does not: factors of its cost.

    A node of several blocks, such as a table that they share, is there while one of them is: its
    Dim has a column of its own, worked out from theirs.
    """

    def __init__(self, graph: Graph) -> None:
        self._when = _presences(graph) if graph.stacks else {}
        self._either: dict[Presence, Dim] = {}

    def of(self, *nodes: fx.Node) -> tuple[Dim, ...]:
        """The factors for what any of ``nodes`` needs; none where it is always there."""
        when: Presence = frozenset()
        for node in nodes:
            when = _or(when, self._when.get(node, ALWAYS))
        if len(when) > 1:
            return (self._either.setdefault(when, Dim(1)),)
        return tuple(sorted(next(iter(when), ()), key=id))

    def columns(self, sizes: Mapping[Dim, NDArray[Any]]) -> dict[Dim, NDArray[Any]]:
        """The columns of the Dims that stand for several blocks, from those of the blocks."""
        return {
            dim: reduce(np.maximum, (_all_there(case, sizes) for case in when))
            for when, dim in self._either.items()
            if any(block in sizes for case in when for block in case)
        }


def _all_there(case: frozenset[Dim], sizes: Mapping[Dim, NDArray[Any]]) -> Any:
    return reduce(np.minimum, (sizes.get(block, 1) for block in case))
