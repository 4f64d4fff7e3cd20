"""Where each elastic dim is read: the operands that some op sums over it, and sums along it.

What a removed position takes away is what these ops no longer add up: there, after norm and
activation, it is truly absent. So importance is measured there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import Tensor, fx
from torch.utils import _pytree as pytree

from nestify.dims import Const, Dim, Expr, Product, dims_of, resolve
from nestify.graph.graph import Graph

__all__ = ["Reading", "active_nodes", "along", "readings", "weights_read"]

Size = Callable[[Expr], int]


class Reading(NamedTuple):
    """A call sums its operand ``source`` over dim ``position``, which consists of ``dims``, and
    more.
    """

    call: fx.Node
    source: fx.Node
    position: int
    dims: frozenset[Dim]


def readings(graph: Graph) -> list[Reading]:
    """Every place where positions of a Dim are summed up, one operand a call and Dim.

    Of two operands (queries and keys) the first that depends on the input stands for both: their
    product is gone as soon as one of them is silent.
    """
    active = active_nodes(graph)
    found: list[Reading] = []
    for node in graph.calls:
        gone = _gone(graph, node)
        by_place: dict[tuple[fx.Node, int], set[Dim]] = {}
        operands = sorted(_operands(graph, node), key=lambda place: place[0] not in active)
        for source, position in operands:
            here = set(dims_of(graph.dims[source][position])) & gone
            gone -= here
            if here:
                by_place.setdefault((source, position), set()).update(here)
        found += [Reading(node, *place, frozenset(dims)) for place, dims in by_place.items()]
    return found


def weights_read(graph: Graph) -> set[tuple[str, int, Dim]]:
    """(parameter, its dim, Dim) wherever a call sums over a Dim of a parameter, or of what is made
    of parameters alone.
    """
    active, found = active_nodes(graph), set[tuple[str, int, Dim]]()
    for node, call in graph.calls.items():
        gone = _gone(graph, node)
        for source, position in call.contracted if gone else ():
            if source not in active:
                for dim in gone.intersection(dims_of(graph.dims[source][position])):
                    found.update(_sites(graph, source, position, dim))
    return found


def _sites(
    graph: Graph, source: fx.Node, position: int, dim: Dim
) -> Iterator[tuple[str, int, Dim]]:
    if source.op == "get_attr":
        yield str(source.target), position, dim
        return
    for name in _parameters_behind(source):
        for at, expr in enumerate(graph.tensor_dims[name]):
            if dim in dims_of(expr):
                yield name, at, dim


def _parameters_behind(node: fx.Node) -> set[str]:
    seen, stack = {node}, [node]
    while stack:
        for source in stack.pop().all_input_nodes:
            if source not in seen:
                seen.add(source)
                stack.append(source)
    return {str(source.target) for source in seen if source.op == "get_attr"}


def along(values: Tensor, expr: Expr, size: Size) -> Iterator[tuple[Dim, Tensor]]:
    """Sum values, whose last dim is ``expr``, to one number a position of each Dim in it.

    >>> import torch
    >>> a, b = Dim(2), Dim(3)
    >>> sums = along(torch.arange(6.0), Product((a, b)), lambda part: part.size)
    >>> {dim.size: total.tolist() for dim, total in sums}
    {2: [3.0, 12.0], 3: [3.0, 5.0, 7.0]}
    """
    expr = resolve(expr)
    if isinstance(expr, Dim):
        yield expr, values
    elif isinstance(expr, Product):
        apart = values.unflatten(-1, [size(part) for part in expr.factors])
        first = values.ndim - 1
        for i, part in enumerate(expr.factors):
            if any(True for _ in dims_of(part)):
                others = [first + j for j in range(len(expr.factors)) if j != i]
                yield from along(apart.sum(others), part, size)
    elif not isinstance(expr, Const):
        pieces = values.split([size(part) for part in expr.parts], -1)
        for part, piece in zip(expr.parts, pieces, strict=True):
            yield from along(piece, part, size)


def _operands(graph: Graph, node: fx.Node) -> list[tuple[fx.Node, int]]:
    """The operands of a call, each with a dim that the call sums over or takes statistics of."""
    call = graph.calls[node]
    statistics = {dim for expr in call.normalised for dim in dims_of(expr)}
    return [
        *call.contracted,
        *(
            (source, position)
            for source in call.tensors()
            for position, expr in enumerate(graph.dims[source])
            if statistics.intersection(dims_of(expr)) and (source, position) not in call.contracted
        ),
    ]


def _gone(graph: Graph, node: fx.Node) -> set[Dim]:
    """The Dims that a call sums over: its output has fewer of them than it multiplies together."""
    left = Counter(dim for expr in pytree.tree_leaves(graph.dims[node]) for dim in dims_of(expr))
    gone = {
        dim
        for source, position in _operands(graph, node)
        for dim in dims_of(graph.dims[source][position])
        if not left[dim] and not dim.batch
    }
    for loop in graph.calls[node].macs:
        met = Counter(dim for expr in loop for dim in dims_of(expr))
        gone |= {dim for dim, times in met.items() if times > left[dim] and not dim.batch}
    return gone


def active_nodes(graph: Graph) -> set[fx.Node]:
    """The nodes that depend on an input of the model."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found
