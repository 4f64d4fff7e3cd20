"""Run every node's rule: a captured model becomes a graph whose every dim is known."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from nestify.capture.captured import Capture
from nestify.capture.source_lines import source_line
from nestify.dims import Const, Dim, Expr, Reason, dims_of, fix
from nestify.graph.free_batch import Batch
from nestify.graph.graph import Graph
from nestify.rules import OPS, Call, Dims, facts_of, fix_numbered, fix_plural, op_name

__all__ = ["analyse"]


def analyse(captured: Capture) -> Graph:
    """Give every dim of ``captured`` its expression; time is near-linear in the number of nodes."""
    graph = Graph(captured)
    for node in captured.graph.nodes:
        if node.op == "placeholder":
            graph.dims[node] = _placeholder_dims(graph, node)
        elif node.op == "get_attr":
            graph.dims[node] = graph.tensor_dims[str(node.target)]
        elif node.op == "call_function":
            _run_rule(graph, node)
        else:
            _fix_outputs(graph, node)
    fix_numbered(graph.calls.values())
    fix_plural(graph.calls.values())
    if graph.example_batch is not None:
        traced = captured.by_batch
        Batch(graph.example_batch, traced, graph.calls, graph.dims, graph.tensor_dims).check()
    return graph


def _placeholder_dims(graph: Graph, node: fx.Node) -> Dims:
    val = node.meta["val"]
    if not isinstance(val, torch.Tensor):
        return ()
    why = Reason(node.name, "input", "is a dim of the model's input", "input")
    dims: list[Expr] = [Const(int(n), why) for n in val.shape]
    if node.name in graph.capture.batched:
        graph.example_batch = graph.example_batch or Dim(int(val.shape[0]), batch=True)
        dims[0] = graph.example_batch
    return tuple(dims)


def _run_rule(graph: Graph, node: fx.Node) -> None:
    call = Call(node, graph.dims)
    rule = facts_of(node.target).rule
    problem = f"{call.op} has no rule"
    if rule is not None:
        try:
            rule(call)
            problem = _mismatch(call)
        except (ValueError, KeyError, IndexError, TypeError, AssertionError) as error:
            problem = str(error) or type(error).__name__
    else:
        graph.unknown_ops.setdefault(call.op, source_line(node))
    if problem:
        call = _give_up(node, graph, problem)
    graph.dims[node] = call.out
    graph.calls[node] = call


def _mismatch(call: Call) -> str:
    """A rule whose output does not have the op's real sizes was wrong about this call."""
    val = call.node.meta["val"]
    pairs = zip(val, call.out, strict=False) if isinstance(val, list | tuple) else [(val, call.out)]
    for tensor, dims in pairs:
        if isinstance(tensor, torch.Tensor) and tuple(tensor.shape) != tuple(e.size for e in dims):
            return f"the rule of {call.op} does not describe this call"
    return ""


def _give_up(node: fx.Node, graph: Graph, problem: str) -> Call:
    """Fix every dim the node touches; its output is as constant as its inputs."""
    fresh = Call(node, graph.dims)
    why = fresh.why(problem, "form" if fresh.op in OPS else "rule")
    for source in fresh.tensors():
        for expr in pytree.tree_leaves(graph.dims[source]):
            fix(expr, why)

    def constant(val: Any) -> Dims:
        return tuple(Const(int(n), why) for n in getattr(val, "shape", ()))

    fresh.out = pytree.tree_map(constant, node.meta["val"])
    return fresh


def _fix_outputs(graph: Graph, node: fx.Node) -> None:
    for source in node.all_input_nodes:
        for expr in graph.dims[source]:
            why = Reason(
                source.name, op_name(source.target), "is a dim of the model's output", "output"
            )
            for dim in [dim for dim in dims_of(expr) if not dim.batch]:
                fix(dim, why)
