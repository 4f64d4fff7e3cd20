"""Refitting: the weights of one subnet, corrected to follow the whole network on given batches.

Call by call, each convolution and linear layer of the subnet gets the weights whose outputs are
nearest, by least squares, to what the whole network has there; its inputs are those that the subnet
has, so that a layer makes up for what earlier ones lost. That takes no labels and no gradients.
How far weights are held to what they were (ridge) is decided on rows that are held out; a layer for
which nothing is better than what it has keeps it.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from nestify.errors import NestifyWarning
from nestify.fitting import RIDGE, Fit
from nestify.groups import Graph
from nestify.patches import Window, by_group, sampled
from nestify.program import Program
from nestify.rules import CONVOLUTIONS, bind_arguments, op_name
from nestify.slicing import Keep, put
from nestify.trees import get_tensor, made_like
from nestify.walking import Stop, Walk, change_operand, flat_batches

__all__ = ["refitted"]

_RIDGES = (RIDGE, 1e-3, 1e-2, 1e-1, 1.0)
_MOST_INPUTS = 8192  # the moments of more would take over 0.5 GiB
_EXACT = 1e-10  # of the energy of the target: such a layer has the right weights already
_FOURTH = 4  # every fourth batch is held out, or of fewer batches the last fourth of each


class _Layer(NamedTuple):
    """The tensors of a call which nothing else reads."""

    weight: fx.Node
    bias: fx.Node | None


def refitted(
    program: Program,
    root: nn.Module,
    keep: Keep,
    calibration: Sequence[Any],
    own: Mapping[str, Tensor],
    whole: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Tensors for the subnet that ``keep`` describes, by name and of the full size.

    ``own`` are those that the subnet, ``whole`` those that the whole network has in place of
    ``root``'s. What is alive of all ``calibration`` batches is held at once, in both networks.
    """
    graph = program.graph
    layers, batches = _layers(graph), flat_batches(graph.capture, calibration)
    reference = Walk(program, root, batches, Keep({}), whole).stops()
    kept = Keep(keep.sizes, keep.picks)  # in the walk's own, the batch has a size
    found: dict[str, Tensor] = {}
    wide: list[str] = []
    for stop in Walk(program, root, batches, keep, own).stops():
        changes: dict[fx.Node, Tensor] = {}
        if stop.node in program.norms:
            changes = _statistics(stop)
        elif stop.node in layers:
            whole_one = next(other for other in reference if other.node is stop.node)
            targets = [kept.slice(y, graph.dims[stop.node]) for y in whole_one.outputs()]
            changes = _fit(stop, layers[stop.node], targets)
        for source, value in changes.items():
            name = str(source.target)
            full = found.get(name, own[name] if name in own else get_tensor(root, name))
            corrected = full.detach().clone()
            put(corrected, kept.plan(graph.tensor_dims[name]), value)
            found[name] = made_like(full, corrected)
            _put_argument(stop, source, value)
    if wide:
        warnings.warn(
            f"refit=True leaves {', '.join(wide)} as they are: a filter reads more than "
            f"{_MOST_INPUTS} values, whose moments would take over 0.5 GiB",
            NestifyWarning,
            stacklevel=3,
        )
    return found


def _layers(graph: Graph) -> dict[fx.Node, _Layer]:
    """The convolutions and linear layers whose weight and bias no other call reads."""
    readers: Counter[str] = Counter()
    for node in graph.nodes:
        if node.op == "get_attr":
            readers[str(node.target)] += len(node.users)

    def lone(operand: Any) -> bool:
        return (
            isinstance(operand, fx.Node)
            and operand.op == "get_attr"
            and readers[str(operand.target)] == 1
            and operand.meta["val"].is_floating_point()
        )

    found: dict[fx.Node, _Layer] = {}
    for node in graph.calls:
        if op_name(node.target) in CONVOLUTIONS | {"linear"}:
            bound = bind_arguments(node)
            weight, bias = bound["weight"], bound["bias"]
            if lone(weight) and (bias is None or lone(bias)):
                found[node] = _Layer(weight, bias)
    return found


def _fit(stop: Stop, layer: _Layer, targets: Sequence[Tensor]) -> dict[fx.Node, Tensor]:
    """Corrected tensors of one call; none where nothing is better than what it has."""
    window, weight = Window(stop.node), stop.values(layer.weight)[0].detach()
    bias = None if layer.bias is None else stop.values(layer.bias)[0].detach()
    groups = stop.args[0][0].shape[1] // weight.shape[1] if window.rank else 1
    apart = weight.unflatten(0, (groups, -1)).flatten(2)
    shift = None if bias is None else bias.unflatten(0, (groups, -1))
    used, held = Fit(apart, shift), Fit(apart, shift)
    energy = 0.0
    for i, (rows, outputs) in enumerate(sampled(window, stop.args, targets)):
        for fit, part in zip((used, held), _divided(i, len(rows), len(targets)), strict=True):
            fit.add(by_group(rows[part], groups).flatten(2), by_group(outputs[part], groups))
        energy += float(outputs.double().square().sum())
    solved = _best(used, held, energy)
    if solved is None:
        return {}
    found = {layer.weight: solved[0].reshape(weight.shape).to(weight)}
    if layer.bias is not None and solved[1] is not None and bias is not None:
        found[layer.bias] = solved[1].flatten().to(bias)
    return found


def _divided(batch: int, rows: int, batches: int) -> tuple[slice, slice]:
    """The rows of a batch that are fitted to, and those that are held out: of other samples."""
    if batches >= _FOURTH:
        out = batch % _FOURTH == _FOURTH - 1
        return (slice(0), slice(None)) if out else (slice(None), slice(0))
    first = rows - rows // _FOURTH
    return slice(first), slice(first, None)


def _best(used: Fit, held: Fit, energy: float) -> tuple[Tensor, Tensor | None] | None:
    """The correction that is best on the rows held out, from all rows; None where none is."""
    if min(used.moments.count, held.moments.count) < 2:
        return None
    count = held.moments.count
    error, ridge = held.error(held.weight, held.bias), None
    if error * (used.moments.count + count) <= _EXACT * energy:
        return None
    for candidate in _RIDGES:
        missed = held.error(*used.solve(candidate))
        if missed < error:
            error, ridge = missed, candidate
    if ridge is None:
        return None
    used.moments.merge(held.moments)
    return used.solve(ridge)


def _statistics(stop: Stop) -> dict[fx.Node, Tensor]:
    """Mean and variance of what a BatchNorm gets in all batches."""
    bound = bind_arguments(stop.node)
    total, square, count = 0.0, 0.0, 0
    for x in stop.values(next(iter(bound.values()))):
        x = x.double().movedim(1, 0).flatten(1)
        count += x.shape[1]
        total = total + x.sum(1)
        square = square + x.square().sum(1)
    mean = total / count
    var = (square / count - mean.square()).clamp_min(0) * (count / max(1, count - 1))
    old = stop.values(bound["running_mean"])[0]
    return {bound["running_mean"]: mean.to(old), bound["running_var"]: var.to(old)}


def _put_argument(stop: Stop, source: fx.Node, value: Tensor) -> None:
    """Let the call run with ``value`` in place of its operand."""
    for args, kwargs in zip(stop.args, stop.kwargs, strict=True):
        given, named = change_operand(stop.node, source, args, kwargs, lambda _: value)
        args[:] = given
        kwargs.update(named)
