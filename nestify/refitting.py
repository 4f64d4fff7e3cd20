"""Refitting: the weights of one subnet, corrected to follow the whole network on given batches.

Call by call, each convolution and linear layer of the subnet gets the weights whose outputs are
nearest, by least squares, to what the whole network has there. Its inputs are those that the subnet
has, so that a layer makes up for what was cut off, before it too; and BatchNorms get the statistics
of what they then see. That takes no labels and no gradients. How far weights are held to what they
were (ridge) is decided on rows that are held out; a layer for which nothing is better than what it
has keeps it.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from nestify.compare import relative_distance
from nestify.errors import NestifyWarning, UsageError
from nestify.fitting import RIDGE, Fit
from nestify.modes import left_as_found
from nestify.patches import Window, by_group, sampled
from nestify.program import Program
from nestify.rules import CONVOLUTIONS, bind_arguments, op_name
from nestify.slicing import Keep, put
from nestify.trees import device_of, get_tensor, made_like
from nestify.walking import Stop, Walk, change_operand, flat_batches

__all__ = ["refitted"]

_RIDGES = (RIDGE, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
_ENOUGH = 1.1  # times the least error: the strongest ridge that does keeps weights small
_MOST_INPUTS = 8192  # the moments of more would take over 0.5 GiB
_ROUNDING = 4  # times the precision of a dtype: values as near as that are the same
_FOURTH = 4  # every fourth batch is held out, or of fewer batches the last fourth of each


def refitted(
    program: Program,
    root: nn.Module,
    keep: Keep,
    calibration: Iterable[Any] | None,
    own: Mapping[str, Tensor],
    whole: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Tensors of the subnet that ``keep`` describes, by name and of the full size.

    ``own`` are those that the subnet, ``whole`` those that the whole network has in place of
    ``root``'s. What is alive of all batches, in both networks, is held at once.

    Raises:
        UsageError: there are no batches.
    """
    if calibration is None:
        raise UsageError("refit=True fits weights to batches of inputs: pass them as calibrate=")
    graph = program.graph
    batches = flat_batches(graph.capture, calibration, device_of(root))
    kept = Keep(keep.sizes, keep.picks)  # without the size of a batch, which a walk's own has
    tensors, wide = _tensors(program), list[str]()
    found: dict[str, Tensor] = {}
    with left_as_found(root):
        root.eval()
        reference = Walk(program, root, batches, Keep({}), whole).stops()
        for stop in Walk(program, root, batches, keep, own).stops():
            if stop.node not in tensors:
                continue
            there = next(other for other in reference if other.node is stop.node)
            old = {node: stop.values(node)[0].detach() for node in tensors[stop.node]}
            if stop.node in program.norms:
                source = _operand(stop.node)
                inputs = [kept.slice(x, graph.dims[source]) for x in there.values(source)]
                new = _statistics(stop, inputs)
            elif next(iter(old.values()))[0].numel() > _MOST_INPUTS:
                wide.append(str(next(iter(old)).target))
                continue
            else:
                outputs = [kept.slice(y, graph.dims[stop.node]) for y in there.outputs()]
                new = _fit(stop, *old.values(), targets=outputs)
            for (source, value), corrected in zip(old.items(), new, strict=False):
                value = corrected.reshape(value.shape).to(value)
                _put_argument(stop, source, value)
                name = str(source.target)
                full = own[name] if name in own else get_tensor(root, name)
                copied = full.detach().clone()
                put(copied, kept.plan(graph.tensor_dims[name]), value)
                found[name] = made_like(full, copied)
    if wide:
        warnings.warn(
            f"refit=True leaves {', '.join(wide)} as {'it is' if len(wide) == 1 else 'they are'}: "
            f"a filter reads over {_MOST_INPUTS} values, whose moments would take over 0.5 GiB",
            NestifyWarning,
            stacklevel=3,
        )
    return found


def _tensors(program: Program) -> dict[fx.Node, list[fx.Node]]:
    """What is corrected of each call that owns it: weight and bias, or running mean and variance.

    A tensor that another call reads too is left to it as it is.
    """
    readers: Counter[str] = Counter()
    for node in program.attrs:
        readers[str(node.target)] += len(node.users)
    found: dict[fx.Node, list[fx.Node]] = {}
    for node in program.graph.calls:
        bound, name = bind_arguments(node), op_name(node.target)
        if node in program.norms:
            operands = [bound["running_mean"], bound["running_var"]]
        elif name == "linear" or (name in CONVOLUTIONS and _in_batches(node)):
            operands = [bound["weight"], bound["bias"]]
        else:
            continue
        given = [operand for operand in operands if operand is not None]
        if all(o.op == "get_attr" and readers[str(o.target)] == 1 for o in given):
            found[node] = given
    return found


def _in_batches(node: fx.Node) -> bool:
    """Whether a convolution has a batch, which it need not."""
    return node.meta["val"].ndim == bind_arguments(node)["weight"].meta["val"].ndim


def _operand(node: fx.Node) -> fx.Node:
    return next(iter(bind_arguments(node).values()))


def _statistics(stop: Stop, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Mean and variance of what a BatchNorm gets in all batches; none where it gets ``inputs``."""
    values = stop.values(_operand(stop.node))
    if relative_distance(inputs, values) <= _ROUNDING * torch.finfo(values[0].dtype).eps:
        return []
    count = sum(x.numel() // x.shape[1] for x in values)
    if count < 2:
        return []
    rows = [x.transpose(0, 1).flatten(1) for x in values]
    mean = sum((x.double().sum(1) for x in rows), torch.zeros(())) / count
    apart = sum(((x.double() - mean[:, None]).square().sum(1) for x in rows), torch.zeros(()))
    return [mean, apart / (count - 1)]


def _fit(
    stop: Stop, weight: Tensor, bias: Tensor | None = None, *, targets: Sequence[Tensor]
) -> list[Tensor]:
    """The weight and bias whose outputs are nearest to ``targets``; none where none are nearer."""
    window = Window(stop.node)
    groups = stop.args[0][0].shape[1] // weight.shape[1] if window.rank else 1
    apart = weight.unflatten(0, (groups, -1)).flatten(2)
    shift = None if bias is None else bias.unflatten(0, (groups, -1))
    used, held = Fit(apart, shift), Fit(apart, shift)
    energy = 0.0
    for i, (rows, outputs) in enumerate(sampled(window, stop.args, targets)):
        for fit, part in zip((used, held), _divided(i, len(rows), len(targets)), strict=True):
            fit.add(by_group(rows[part], groups).flatten(2), by_group(outputs[part], groups))
        energy += float(outputs.double().square().sum())
    rows = used.moments.count + held.moments.count
    rounding = (_ROUNDING * torch.finfo(weight.dtype).eps) ** 2 * energy / max(1, rows)
    return [tensor for tensor in _best(used, held, rounding) if tensor is not None]


def _divided(batch: int, rows: int, batches: int) -> tuple[slice, slice]:
    """The rows of a batch that are fitted to, and those that are held out: of other samples."""
    if batches >= _FOURTH:
        out = batch % _FOURTH == _FOURTH - 1
        return (slice(0), slice(None)) if out else (slice(None), slice(0))
    first = rows - rows // _FOURTH
    return slice(first), slice(first, None)


def _best(used: Fit, held: Fit, rounding: float) -> tuple[Tensor | None, ...]:
    """The correction, from all rows, with the strongest ridge that is nearly the best on those held
    out; none where no correction is better.
    """
    if min(used.moments.count, held.moments.count) < 2:
        return ()
    before = held.error(held.weight, held.bias)
    if before <= rounding:
        return ()
    errors = {ridge: held.error(*used.solve(ridge)) for ridge in _RIDGES}
    least = min(errors.values())
    if not least < before:
        return ()
    enough = min(_ENOUGH * least, before)
    ridge = max(ridge for ridge, error in errors.items() if error <= enough)
    used.moments.merge(held.moments)
    return used.solve(ridge)


def _put_argument(stop: Stop, source: fx.Node, value: Tensor) -> None:
    """Let the call run with ``value`` in place of its operand."""
    for args, kwargs in zip(stop.args, stop.kwargs, strict=True):
        given, named = change_operand(stop.node, source, args, kwargs, lambda _: value)
        args[:] = given
        kwargs.update(named)
