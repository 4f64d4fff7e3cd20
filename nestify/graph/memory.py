"""Which values of a graph lie in the same memory, and which calls write into what."""

from __future__ import annotations

from collections.abc import Container, Iterator

from torch import fx, nn

from nestify.graph.graph import Graph
from nestify.rules import VIEWS, bind_arguments, is_mutable, op_name

__all__ = ["roots", "statistics_of", "written", "written_operands"]

_WITH_STATISTICS = ("batch_norm", "instance_norm")
# Ops that may hand on their operand itself.
_HANDING_ON = frozenset(
    "dropout feature_dropout alpha_dropout feature_alpha_dropout contiguous to type_as "
    "nestify::stochastic".split()
)


def roots(graph: Graph, apart: Container[fx.Node] = ()) -> dict[fx.Node, fx.Node]:
    """The node that each node may share its memory with: itself, or the base of a view or of an op
    that works in place. Those ``apart`` count as memory of their own, whatever they share.
    """
    found: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        source = node.args[0] if node.op == "call_function" and node.args else None
        name = op_name(node.target)
        shares = is_mutable(node) or name in VIEWS or name in _HANDING_ON
        own = node in apart or not shares
        found[node] = found[source] if isinstance(source, fx.Node) and not own else node
    return found


def statistics_of(node: fx.Node) -> list[fx.Node]:
    """The running statistics that a norm reads, and writes in training."""
    if node.op != "call_function" or op_name(node.target) not in _WITH_STATISTICS:
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
