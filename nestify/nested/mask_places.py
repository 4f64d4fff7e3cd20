"""Where ordered dropout acts: the places of its units in the graph, and vectors along their dims.

FN3 masks a unit after norm and activation, at the input of the operations that sum over it: there a
removed channel is truly absent. A mask before the norm is a different network: its removed channels
come out of the norm as constants (kept here for comparison).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from nestify.dims import Concat, Const, Dim, Expr, Product, dims_of, product, resolve
from nestify.errors import UsageError
from nestify.graph.contractions import active_nodes
from nestify.graph.graph import Graph
from nestify.graph.memory import roots, written_operands
from nestify.rules import op_name

__all__ = ["Place", "after_activation", "before_norm", "stretched", "weights_behind"]


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor of the graph that carries a unit's ``dim`` in dim ``position``, as part of ``expr``,
    which repeats for each sample where the batch stands ahead of it. ``reader`` is the one call
    that reads it, or None where all do.
    """

    unit: str
    dim: Dim
    node: fx.Node
    position: int
    expr: Expr
    reader: fx.Node | None = None


def after_activation(graph: Graph, names: Mapping[Dim, str]) -> list[Place]:
    """The tensors that some op sums over, for each Dim of a unit, with its name: the inputs of the
    next layers, and their weights, each for one reader.

    Raises:
        UsageError: an op takes statistics over a unit, which masks would change.
    """
    inputs, alone = active_nodes(graph), _read_alone(graph)
    found: dict[tuple[fx.Node, int, Dim, fx.Node | None], Place] = {}
    for node, call in graph.calls.items():
        for expr in call.normalised:
            for dim in set(dims_of(expr)) & names.keys():
                raise UsageError(
                    f"unit {names[dim]!r} cannot be masked: {op_name(node.target)} takes statistics"
                    " over it, which zeros would change; run it sliced, or leave it out with "
                    "where=hidden"
                )
        # What is computed of weights alone may take norms over a unit that it has in its result.
        of = _summed if node in inputs else _operands
        for place in chain.from_iterable(of(graph, node, names).values()):
            reader = node if place.node in alone else None
            key = place.node, place.position, place.dim, reader
            found.setdefault(key, replace(place, reader=reader))
    return list(found.values())


def _read_alone(graph: Graph) -> set[fx.Node]:
    """What is masked where it is summed, not where it is made: the model's own tensors, and memory
    that is written in place, where a mask would come too early or part what shares it.
    """
    base = roots(graph)
    dirty = {base[operand] for node in graph.nodes for operand in written_operands(node)}
    return {node for node in graph.nodes if node.op == "get_attr" or base[node] in dirty}


def before_norm(graph: Graph, names: Mapping[Dim, str]) -> list[Place]:
    """The outputs of the layers that make each unit, ahead of what follows them."""
    return [
        place
        for node, call in graph.calls.items()
        if call.macs
        for position in range(len(graph.dims[node]))
        for place in _places(graph, node, position, names)
    ]


def weights_behind(graph: Graph, names: Mapping[Dim, str]) -> list[Place]:
    """The weights that are summed with a unit's activations.

    Raises:
        UsageError: a unit is summed with no weight that could carry a factor.
    """
    found: dict[tuple[Dim, str, int], Place] = {}
    for node in graph.calls:
        for dim, places in _summed(graph, node, names).items():
            weights = [place for place in places if place.node.op == "get_attr"]
            if not weights:
                raise UsageError(
                    f"unit {names[dim]!r} cannot be scaled: {op_name(node.target)} sums over it "
                    "without a weight that could carry the factor; use scaling='none'"
                )
            for place in weights:
                found[dim, str(place.node.target), place.position] = place
    return list(found.values())


def stretched(expr: Expr, values: Mapping[Dim, torch.Tensor]) -> torch.Tensor:
    """Values along ``expr``: those given for its Dims, multiplied, and 1 for all others.

    >>> a = Dim(2)
    >>> stretched(Product((a, Const(2))), {a: torch.tensor([1.0, 0.0])})
    tensor([1., 1., 0., 0.])
    """
    expr = resolve(expr)
    if isinstance(expr, Product):
        found = next(iter(values.values())).new_ones(1)
        for part in expr.factors:
            found = (found[:, None] * stretched(part, values)[None, :]).flatten()
        return found
    if isinstance(expr, Concat):
        return torch.cat([stretched(part, values) for part in expr.parts])
    if isinstance(expr, Const) or expr not in values:
        return next(iter(values.values())).new_ones(expr.size)
    return values[expr]


def _places(graph: Graph, node: fx.Node, position: int, names: Mapping[Dim, str]) -> list[Place]:
    expr = graph.dims[node][position]
    if isinstance(expr, tuple):
        return []
    return [
        Place(names[dim], dim, node, position, _of_one_sample(node, names[dim], expr))
        for dim in dict.fromkeys(dims_of(expr))
        if dim in names
    ]


def _of_one_sample(node: fx.Node, unit: str, expr: Expr) -> Expr:
    """``expr`` without a batch ahead of it, which may be of any size."""
    expr = resolve(expr)
    if isinstance(expr, Product) and isinstance(first := expr.factors[0], Dim) and first.batch:
        expr = product(expr.factors[1:])
    if any(dim.batch for dim in dims_of(expr)):
        raise UsageError(
            f"unit {unit!r} cannot be masked: {op_name(node.target)} has it in one dim with the "
            "batch behind it, which may be of any size; run it sliced"
        )
    return expr


def _summed(graph: Graph, node: fx.Node, names: Mapping[Dim, str]) -> dict[Dim, list[Place]]:
    """The operands along which a call sums, for each Dim of a unit that it sums over.

    That is not told by its output alone: a layer as wide as what it reads may have one unit on both
    sides, and the values of attention the unit of its keys.
    """
    left = set(_dims_of(graph.dims[node]))
    contracted = graph.calls[node].contracted
    weights = [(source, at) for source, at in contracted if source.op == "get_attr"]
    others = _dims_of(
        [expr for source, at in contracted for i, expr in enumerate(graph.dims[source]) if i != at]
    )
    for source, at in weights:
        left -= set(dims_of(graph.dims[source][at])) & others
    summed = {dim: name for dim, name in names.items() if dim not in left or not weights}
    return _operands(graph, node, summed)


def _operands(graph: Graph, node: fx.Node, names: Mapping[Dim, str]) -> dict[Dim, list[Place]]:
    """The operands along which a call sums that carry these Dims."""
    found: dict[Dim, list[Place]] = {}
    for source, at in graph.calls[node].contracted:
        for place in _places(graph, source, at, names):
            found.setdefault(place.dim, []).append(place)
    return found


def _dims_of(dims: Any) -> set[Dim]:
    """All Dims in the dims of a node."""
    return {dim for expr in pytree.tree_leaves(dims) for dim in dims_of(expr)}
