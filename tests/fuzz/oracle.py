"""What slicing is checked against: the full-size graph with removed positions silenced.

It reads the original parameters and literals only, so it shares neither the slicing of tensors nor
the respelling of literals with what it checks: just the claim which positions belong together.
Statistics over a dim that shrinks are those of its kept positions: a smaller net has its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import fx
from torch.utils import _pytree as pytree

from nestify.dims import Expr
from nestify.dims.selection import Keep
from nestify.graph.graph import Graph
from nestify.rules import op_name


def silenced(
    graph: Graph, tensors: Mapping[str, torch.Tensor], keep: Keep, flat: list[Any]
) -> list[Any]:
    """Run the captured graph whole, zeroing removed positions wherever an op sums over them.

    A dropped block adds nothing to what stays without it.
    """
    env: dict[fx.Node, Any] = {}
    inputs = iter(flat)

    dropped = {b.exit: b.stays for b in graph.blocks if keep.size(b.presence) == 0}

    def look(node: fx.Node) -> Any:
        return env[node]

    for node in graph.nodes:
        if node.op == "placeholder":
            env[node] = next(inputs)
        elif node.op == "get_attr":
            env[node] = tensors[str(node.target)]
        elif node.name in dropped:
            stays = next(env[source] for source in env if source.name == dropped[node.name])
            env[node] = stays.clone()  # what follows may write into the sum
        elif node.op == "output":
            return list(cast(list[Any], fx.map_arg(node.args[0], look)))
        else:
            env[node] = _silenced_call(graph, keep, node, env)
    raise AssertionError("a graph ends with its output")


def _silenced_call(graph: Graph, keep: Keep, node: fx.Node, env: dict[fx.Node, Any]) -> Any:
    muted = dict[fx.Node, Any]()
    for source, dim in graph.calls[node].contracted:
        expr = graph.dims[source][dim]
        if keep.is_full(expr):
            continue
        value = muted.get(source, env[source])
        removed = torch.ones(value.shape[dim], dtype=torch.bool, device=value.device)
        removed[keep.indices(expr)] = False
        # Filled, not multiplied: what is removed may be no number.
        muted[source] = value.index_fill(dim, removed.nonzero().flatten(), 0)
    if any(not keep.is_full(expr) for expr in graph.calls[node].normalised):
        return _own_statistics(graph, keep, node, env)

    def look(part: Any) -> Any:
        return fx.map_arg(part, lambda n: muted.get(n, env[n]))

    target: Any = node.target
    args, kwargs = look(node.args), look(dict(node.kwargs))
    if str(target).startswith("nestify.stochastic"):
        return args[0]
    return target(*args, **kwargs)


def _own_statistics(graph: Graph, keep: Keep, node: fx.Node, env: dict[fx.Node, Any]) -> Any:
    """Run an op that takes statistics on kept positions alone, and put those back in their places;
    the other places are zero, which nothing reads.
    """

    def kept(source: fx.Node) -> Any:
        value = env[source]
        for dim, expr in enumerate(graph.dims[source]):
            value = value.index_select(dim, keep.indices(expr).to(value.device))
        return value

    def look(part: Any) -> Any:
        return fx.map_arg(part, kept)

    target: Any = node.target
    args, kwargs = list(look(node.args)), look(dict(node.kwargs))
    op = op_name(target)
    if op in ("layer_norm", "rms_norm"):
        args[1] = list(args[0].shape[-len(args[1]) :])
    elif op == "group_norm":
        (groups,) = graph.calls[node].literals.values()
        args[1] = len(keep.indices(cast(Expr, groups)))
    else:
        assert not graph.calls[node].literals, f"the oracle cannot run {op} on kept positions"
    found = target(*args, **kwargs)
    if not isinstance(found, tuple | list):
        return _put_back(keep, found, graph.dims[node])
    return [_put_back(keep, v, dims) for v, dims in zip(found, graph.dims[node], strict=True)]


def _put_back(keep: Keep, value: torch.Tensor, dims: Any) -> torch.Tensor:
    for dim, expr in enumerate(dims):
        if not keep.is_full(expr):
            shape = [*value.shape[:dim], expr.size, *value.shape[dim + 1 :]]
            places = keep.indices(expr).to(value.device)
            value = value.new_zeros(shape).index_copy(dim, places, value)
    return value


def normalises_elastic(graph: Graph, keep: Keep) -> bool:
    """Whether an op takes statistics over a dim that shrinks: then the nets must differ."""
    return any(not keep.is_full(expr) for call in graph.calls.values() for expr in call.normalised)


def flat_inputs(args: Any, kwargs: Any = None) -> list[Any]:
    """Inputs as the captured graph takes them."""
    return pytree.tree_leaves((args, dict(kwargs or {})))
