"""Which values of a graph lie in the same memory, and which calls write into what."""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Any

from torch import fx, nn

from nestify.graph.graph import Graph
from nestify.rules import bind_arguments, facts_of, is_mutable, schema_views

__all__ = ["roots", "shared_operands", "statistics_of", "written", "written_operands"]


def roots(graph: Graph, apart: Container[fx.Node] = ()) -> dict[fx.Node, fx.Node]:
    """The node that each node may share its memory with: itself, or the base of a view or of an op
    that works in place. Those ``apart`` count as memory of their own, whatever they share.

    Of several operands that one call may share memory with, the first base stands for all.
    """
    found: dict[fx.Node, fx.Node] = {}
    joined: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        operands = [] if node in apart else shared_operands(node)
        first, *others = dict.fromkeys(_last(joined, found[o]) for o in operands) or [node]
        joined |= dict.fromkeys(others, first)
        found[node] = first
    return {node: _last(joined, base) for node, base in found.items()}


def _last(joined: dict[fx.Node, fx.Node], node: fx.Node) -> fx.Node:
    while node in joined:
        node = joined[node]
    return node


def shared_operands(node: fx.Node, *, always: bool = False) -> list[fx.Node]:
    """The operands whose memory the result of a call may share, or ``always`` shares."""
    if node.op != "call_function":
        return []
    facts, views = facts_of(node.target), schema_views(node.target)
    if always and facts.hands_on:
        return []
    if not (views or facts.views or facts.hands_on):
        return []  # most ops
    bound = bind_arguments(node)
    named = [_nodes_in(bound[name]) for name in views]
    if facts.views or facts.hands_on:
        named += [found for value in bound.values() if (found := _nodes_in(value))][:1]
    return [operand for found in named for operand in found]


def _nodes_in(value: Any) -> list[fx.Node]:
    items = value if isinstance(value, list | tuple) else (value,)
    return [item for item in items if isinstance(item, fx.Node)]


def statistics_of(node: fx.Node) -> list[fx.Node]:
    """The running statistics that a norm reads, and writes in training."""
    if node.op != "call_function" or not facts_of(node.target).statistics:
        return []
    bound = bind_arguments(node)
    found = (bound["running_mean"], bound["running_var"])
    return [statistic for statistic in found if isinstance(statistic, fx.Node)]


def written_operands(node: fx.Node) -> Iterator[fx.Node]:
    """The operands that a call writes into in place."""
    if node.op == "call_function" and is_mutable(node) and isinstance(node.args[0], fx.Node):
        yield node.args[0]


def written(graph: Graph, *, in_eval: bool = False) -> list[fx.Node]:
    """The buffers and constants that some call writes into, in place or as running statistics;
    ``in_eval`` leaves out statistics that only training writes.
    """
    base, tensors = roots(graph), graph.capture.tensors
    switched = {name for name, _ in graph.capture.mode_args} if in_eval else set[str]()
    targets = (
        target
        for n in graph.nodes
        for target in (*(() if n.name in switched else statistics_of(n)), *written_operands(n))
    )
    return [
        node
        for node in dict.fromkeys(base[target] for target in targets)
        if node.op == "get_attr" and not isinstance(tensors[str(node.target)], nn.Parameter)
    ]
