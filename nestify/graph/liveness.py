"""Liveness: what a subnet still computes when some of its residual blocks are dropped.

A call that works in place is computed for the sake of whoever reads that memory behind it. The sum
of a block that may be dropped begins memory of its own: what stands in for it is not the branch's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import fx

from nestify.dims import Dim
from nestify.dims.selection import Keep
from nestify.graph.graph import Graph
from nestify.graph.groups import Block
from nestify.graph.memory import roots, written_operands
from nestify.rules import is_mutable

__all__ = ["PresenceDims", "bypassed", "live_nodes", "overwritten", "sums_of_blocks"]

Presence = frozenset[frozenset[Dim]]
"""When a node is computed: one of these sets of blocks is there whole. ``{{}}`` is always."""

ALWAYS: Presence = frozenset([frozenset()])


def sums_of_blocks(graph: Graph) -> dict[fx.Node, tuple[Block, fx.Node]]:
    """The sum of each block that a unit may drop, with the operand that stays without it."""
    blocks = {block.exit: block for block in graph.droppable}
    if not blocks:
        return {}
    by_name = {node.name: node for node in graph.nodes}
    return {by_name[b.exit]: (b, by_name[b.stays]) for b in blocks.values()}


def bypassed(graph: Graph, keep: Keep) -> dict[fx.Node, fx.Node]:
    """The sums whose block ``keep`` drops, each with the node that stands in for it."""
    sums = sums_of_blocks(graph)
    return {node: stays for node, (block, stays) in sums.items() if not keep.size(block.presence)}


def overwritten(graph: Graph) -> set[fx.Node]:
    """The sums whose stand-in needs memory of its own: something behind writes into the sum, or
    into what stays without the block.
    """
    stays = {node: source for node, (_, source) in sums_of_blocks(graph).items()}
    base = roots(graph, apart=stays)
    written: set[fx.Node] = set()
    found: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node in stays and written & {node, *_standing_in(node, stays, base)}:
            found.add(node)
        written.update(base[operand] for operand in written_operands(node))
    return found


def _standing_in(
    node: fx.Node, stays: Mapping[fx.Node, fx.Node], base: Mapping[fx.Node, fx.Node]
) -> Iterator[fx.Node]:
    """The memory that may be handed on in place of a sum: of what stays, and what stays there."""
    while node in stays:
        node = base[stays[node]]
        yield node


def live_nodes(graph: Graph, bypass: Mapping[fx.Node, fx.Node]) -> set[fx.Node]:
    """The nodes that the outputs, and what is written into inputs and buffers, depend on."""
    base = roots(graph, apart=sums_of_blocks(graph))
    live: set[fx.Node] = set()
    read: set[fx.Node] = set()  # the memory that live nodes behind read
    for node in reversed(graph.nodes):
        if node in live or _always(node, base) or any(m in read for m in _memory(node, base)):
            sources = [bypass[node]] if node in bypass else node.all_input_nodes
            live.update([node, *sources])
            read.update(base[source] for source in sources)
    return live


def _always(node: fx.Node, base: Mapping[fx.Node, fx.Node]) -> bool:
    """Whether a node counts whatever is read of it: it writes into what others can see."""
    if node.op in ("output", "placeholder"):
        return True
    memory = list(_memory(node, base))
    outlives = any(place.op != "call_function" for place in memory)
    return outlives or (is_mutable(node) and not memory)


def _memory(node: fx.Node, base: Mapping[fx.Node, fx.Node]) -> Iterator[fx.Node]:
    """The memory that a call writes into."""
    return (base[operand] for operand in written_operands(node))


def _presences(graph: Graph) -> dict[fx.Node, Presence]:
    """When each node is computed, as the blocks that may be dropped decide."""
    sums = sums_of_blocks(graph)
    base = roots(graph, apart=sums)
    read: dict[fx.Node, Presence] = {}  # nodes, by who reads them
    held: dict[fx.Node, Presence] = {}  # the same of all that lies in one memory
    for node in reversed(graph.nodes):
        when = ALWAYS if _always(node, base) else read.get(node, frozenset())
        for place in _memory(node, base):
            when = _or(when, held.get(place, frozenset()))
        read[node] = when
        block, stays = sums.get(node, (None, None))
        for source in node.all_input_nodes:
            needed = when if block is None or source is stays else _and(when, block.presence)
            read[source] = _or(read.get(source, frozenset()), needed)
            held[base[source]] = _or(held.get(base[source], frozenset()), needed)
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
        self._when = _presences(graph) if graph.droppable else {}
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
