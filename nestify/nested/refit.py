"""Refitting: the weights of one subnet, corrected to follow the whole network on given batches.

Call by call, each convolution and linear layer of the subnet gets the weights whose outputs are
nearest, by least squares, to what the whole network has there. Its inputs are those that the subnet
has, so that a layer makes up for what was cut off, before it too. BatchNorms have the statistics of
these batches, in both networks. That takes no labels and no gradients. How far weights are held to
what they were (ridge) is decided on rows that are held out; a layer for which nothing is better
than what it has keeps it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, fx, nn

from nestify.capture.batches import flat_batches
from nestify.dims.selection import Keep, put
from nestify.errors import NestifyWarning, UsageError
from nestify.nested.refit_layers import LayerCall, layer_calls
from nestify.nested.switchable_norms import SwitchableNorms
from nestify.rules import bind_arguments
from nestify.runtime.batch_statistics import NormCall
from nestify.runtime.im2col import Window, by_group, sampled
from nestify.runtime.lockstep import Stop, Walk
from nestify.runtime.program import Program
from nestify.space import SearchSpace, Subnet
from nestify.support.least_squares import MOST_INPUTS, RIDGE, Fit
from nestify.support.module_state import left_as_found
from nestify.support.module_tree import device_of, get_tensor, made_like

__all__ = ["refitted"]

_RIDGES = (RIDGE, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
_ENOUGH = 1.1  # times the least error: the strongest ridge that does keeps weights small
_WIDE = f"a filter reads over {MOST_INPUTS} values, whose moments would take over 0.5 GiB"
_AT_ONCE = MOST_INPUTS  # values that the filters of some groups read together
_ROUNDING = 4  # times the precision of a dtype: values as near as that are the same
_FOURTH = 4  # every fourth batch is held out, or of fewer batches the last fourth of each


class _Nested(Protocol):
    """What is read of a nested model, which knows this function itself."""

    @property
    def space(self) -> SearchSpace: ...
    @property
    def switchable_norms(self) -> SwitchableNorms | None: ...
    def own_tensors(
        self, subnet: Subnet | None, *, statistics: bool = True
    ) -> dict[str, Tensor]: ...


def refitted(
    nested: _Nested,
    program: Program,
    norms: Mapping[fx.Node, NormCall],
    keep: Keep,
    calibration: Iterable[Any] | None,
    own: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Tensors of the subnet that ``keep`` describes, by name and of the full size.

    ``own`` are those that it has already in place of the nested model's, without statistics that
    were estimated for it. What is alive of all batches, in both networks, is held at once.

    Raises:
        UsageError: there are no batches; the network writes into its buffers in eval; norms switch,
            and the whole network has none.
    """
    if calibration is None:
        raise UsageError("refit=True fits weights to batches of inputs: pass them as calibrate=")
    root, whole = cast(nn.Module, nested), nested.space.largest()
    _refuse(program, nested.switchable_norms, whole)
    batches = flat_batches(program.graph.capture, calibration, device_of(root))
    subnet = _Subnet(program, root, keep, batches, own)
    calls, left = layer_calls(program, norms), _Left()
    shared = {str(bind_arguments(n)["running_mean"].target) for n in norms.keys() - calls}
    if shared:
        left.why["several calls share these statistics"] = sorted(shared)
    teacher = nested.own_tensors(whole, statistics=False)
    with left_as_found(root):
        root.eval()
        reference = Walk(program, root, _copies(batches), Keep({}), teacher)
        others = _on_these_batches(reference, calls)
        for stop in Walk(program, root, _copies(batches), _copy(keep), own).stops():
            call = calls.get(stop.node)
            if call is None:
                continue
            other = next(other for other in others if other.node is stop.node)
            if call.is_norm:
                subnet.correct(stop, call, _statistics(stop, call))
            elif call.filters(stop)[0].numel() > MOST_INPUTS:
                left.why.setdefault(_WIDE, []).append(call.tensors[0].name)
            elif not subnet.reads_all(stop, other, call):
                targets = subnet.cut(other.outputs(), stop.node)
                subnet.correct(stop, call, _fitted(stop, call, targets, left))
    if all(call.is_norm for call in calls.values()):
        left.why["no call has parameters of its own as its weights"] = ["every layer"]
    left.warn()
    return subnet.found


class _Left:
    """What is left as it is, by the reason."""

    def __init__(self) -> None:
        self.why: dict[str, list[str]] = {}

    def warn(self) -> None:
        """Name it."""
        for reason, names in self.why.items():
            stay = "it is" if len(names) == 1 else "they are"
            warnings.warn(
                f"refit=True leaves {', '.join(names)} as {stay}: {reason}",
                NestifyWarning,
                stacklevel=4,
            )


def _refuse(program: Program, switch: SwitchableNorms | None, whole: Subnet) -> None:
    writes = sorted(str(node.target) for node, in_eval in program.frame.written.items() if in_eval)
    if writes:
        raise UsageError(
            f"refit=True runs all batches in step, and the network writes into {', '.join(writes)} "
            "in eval: what a batch leaves there for the next would be lost"
        )
    if switch is not None and whole not in switch.subnets:
        raise UsageError(
            "refit=True follows the whole network, which has no norms of its own here: name it, "
            "1.0, among the subnets of switch_norms"
        )


def _copy(keep: Keep) -> Keep:
    """The same, to be told the size of a batch."""
    return Keep(keep.sizes, keep.picks)


def _copies(batches: Sequence[list[Any]]) -> list[list[Any]]:
    """Inputs that a walk may write into."""
    return [[v.clone() if isinstance(v, Tensor) else v for v in flat] for flat in batches]


def _on_these_batches(walk: Walk, calls: Mapping[fx.Node, LayerCall]) -> Iterator[Stop]:
    """The stops of the whole network, whose norms have the statistics of what they get."""
    for stop in walk.stops():
        call = calls.get(stop.node)
        if call is not None and call.is_norm:
            for tensor, value in zip(call.tensors, _statistics(stop, call), strict=False):
                stop.put(tensor.operand, value)
        yield stop


class _Subnet:
    """What one subnet has of the tensors and values of the whole network, and what is ``found`` for
    it.
    """

    def __init__(
        self,
        program: Program,
        root: nn.Module,
        keep: Keep,
        batches: Sequence[list[Any]],
        own: Mapping[str, Tensor],
    ) -> None:
        self.graph, self.root, self.own = program.graph, root, own
        self.keep = _copy(keep)
        self.keeps = [self._of_batch(program, flat) for flat in batches]
        self.found: dict[str, Tensor] = {}

    def _of_batch(self, program: Program, flat: Sequence[Any]) -> Keep:
        """The same with the size of a batch, which dims may hold beside what is cut."""
        keep = _copy(self.keep)
        if self.graph.batch is not None:
            keep.hold(self.graph.batch, program.samples(flat))
        return keep

    def cut(self, values: Sequence[Tensor], node: fx.Node) -> list[Tensor]:
        """What the subnet has of the whole network's ``values`` of a node, batch by batch."""
        dims = self.graph.dims[node]
        return [k.slice(x, dims) for k, x in zip(self.keeps, values, strict=True)]

    def reads_all(self, stop: Stop, other: Stop, call: LayerCall) -> bool:
        """Whether a filter of the subnet reads what it does in the whole network."""
        mine, whole = (call.filters(each).shape[1:] for each in (stop, other))
        there = self.cut(other.values(call.operand), call.operand)
        return mine == whole and all(map(_same, stop.values(call.operand), there))

    def correct(self, stop: Stop, call: LayerCall, new: Sequence[Tensor]) -> None:
        """Let the call run with ``new`` tensors, if there are any, and note them."""
        for (source, name, flipped), values in zip(call.tensors, new, strict=False):
            stop.put(source, values)
            value = stop.values(source)[0]
            value = value.mT if flipped else value
            full = self.own[name] if name in self.own else get_tensor(self.root, name)
            corrected = full.detach().clone()
            put(corrected, self.keep.plan(self.graph.tensor_dims[name]), value)
            self.found[name] = made_like(full, corrected)


def _same(mine: Tensor, theirs: Tensor) -> bool:
    """Whether two values are equal but for rounding."""
    if mine.shape != theirs.shape:
        return False
    if torch.equal(mine, theirs):
        return True
    apart, size = ((x.double().square().sum()) ** 0.5 for x in (mine - theirs, theirs))
    return bool(apart.isfinite() and apart <= _ROUNDING * torch.finfo(mine.dtype).eps * size)


def _statistics(stop: Stop, call: LayerCall) -> list[Tensor]:
    """Mean and variance of what a BatchNorm gets in all batches; none of a single value."""
    values = stop.values(call.operand)
    count = sum(x.numel() // x.shape[1] for x in values)
    if count < 2:
        return []
    sums = [x.transpose(0, 1).flatten(1).double().sum(1) for x in values]
    mean = torch.stack(sums).sum(0) / count
    apart = [(x.transpose(0, 1).flatten(1) - mean[:, None]).square().sum(1) for x in values]
    return [mean, torch.stack(apart).sum(0) / (count - 1)]


def _fitted(stop: Stop, call: LayerCall, targets: Sequence[Tensor], left: _Left) -> list[Tensor]:
    """The weight and bias whose outputs are nearest to ``targets``; none where none are nearer.

    Of many groups some are fitted at a time.
    """
    weight, inputs = call.filters(stop), stop.values(call.operand)
    biases = [stop.values(bias.operand)[0].detach() for bias in call.tensors[1:]]
    groups = inputs[0].shape[1] // weight.shape[1] if Window(stop.node).rank else 1
    apart = weight.unflatten(0, (groups, -1)).flatten(2)
    shifts = [bias.unflatten(0, (groups, -1)) for bias in biases]
    found = [old.to(torch.float64, copy=True) for old in (apart, *shifts)]
    changed = False
    some = max(1, _AT_ONCE // apart.shape[-1])
    for first in range(0, groups, some):
        here = slice(first, first + some)
        old = [tensor[here] for tensor in (apart, *shifts)]
        fits = _fits(Window(stop.node), inputs, targets, old, first, groups)
        why = _hindrance(*fits)
        if why:
            left.why.setdefault(why, []).append(call.tensors[0].name)
            return []
        for tensor, new in zip(found, _best(*fits), strict=False):
            tensor[here] = new
            changed = True
    if call.turned:
        found[0] = found[0].mT
    return found if changed else []


def _fits(
    window: Window,
    inputs: Sequence[Tensor],
    targets: Sequence[Tensor],
    old: Sequence[Tensor],
    first: int,
    groups: int,
) -> tuple[Fit, Fit]:
    """The rows of some groups, from ``first`` on, that are fitted to, and those that are held
    out.
    """
    count = len(old[0])
    used, held = (Fit(old[0], old[1] if len(old) > 1 else None) for _ in range(2))
    if count < groups:
        inputs, targets = (
            [x.unflatten(1, (groups, -1))[:, first : first + count].flatten(1, 2) for x in values]
            for values in (inputs, targets)
        )
    for i, (rows, outputs) in enumerate(sampled(window, [[x] for x in inputs], targets)):
        for fit, part in zip((used, held), _divided(i, len(rows), len(targets)), strict=True):
            fit.add(by_group(rows[part], count).flatten(2), by_group(outputs[part], count))
    return used, held


def _hindrance(used: Fit, held: Fit) -> str:
    """Why nothing can be fitted to these rows, if so."""
    if not used.count or not held.count:
        return "calibrate= gives too few rows to fit to some and hold out others; pass more samples"
    finite = all(math.isfinite(fit.error(fit.weight, fit.bias)) for fit in (used, held))
    return "" if finite else "values that it reads or should give are not finite"


def _divided(batch: int, rows: int, batches: int) -> tuple[slice, slice]:
    """The rows of a batch that are fitted to, and those that are held out: of other samples."""
    if batches >= _FOURTH:
        out = batch % _FOURTH == _FOURTH - 1
        return (slice(0), slice(None)) if out else (slice(None), slice(0))
    first = rows - rows // _FOURTH
    return slice(first), slice(first, None)


def _best(used: Fit, held: Fit) -> list[Tensor]:
    """The correction, from all rows, with the strongest ridge that is nearly the best on those held
    out; none where no correction is better.
    """
    before = held.error(held.weight, held.bias)
    errors = {ridge: held.error(*used.solve(ridge)) for ridge in _RIDGES}
    least = min(errors.values())
    if not least < before:
        return []
    enough = min(_ENOUGH * least, before)
    ridge = max(ridge for ridge, error in errors.items() if error <= enough)
    used.merge(held)
    return [tensor for tensor in used.solve(ridge) if tensor is not None]
