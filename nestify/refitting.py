"""Refitting: the weights of one subnet, corrected to follow the whole network on given batches.

Call by call, each convolution and linear layer of the subnet gets the weights whose outputs are
nearest, by least squares, to what the whole network has there. Its inputs are those that the subnet
has, so that a layer makes up for what was cut off, before it too. BatchNorms have the statistics of
these batches, in both networks. That takes no labels and no gradients. How far weights are held to
what they were (ridge) is decided on rows that are held out; a layer for which nothing is better
than what it has keeps it.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, fx, nn

from nestify.autocasting import blocks_of
from nestify.errors import NestifyWarning, UsageError
from nestify.fitting import MOST_INPUTS, RIDGE, Fit
from nestify.modes import left_as_found
from nestify.overlays import SwitchableNorms
from nestify.patches import Window, by_group, sampled
from nestify.program import Program
from nestify.rules import CONVOLUTIONS, bind_arguments, op_name
from nestify.slicing import Keep, put
from nestify.space import SearchSpace, Subnet
from nestify.trees import device_of, get_tensor, made_like
from nestify.walking import Stop, Walk, flat_batches

__all__ = ["refitted"]

_RIDGES = (RIDGE, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
_ENOUGH = 1.1  # times the least error: the strongest ridge that does keeps weights small
_ROUNDING = 4  # times the precision of a dtype: values as near as that are the same
_FOURTH = 4  # every fourth batch is held out, or of fewer batches the last fourth of each


class _Nested(Protocol):
    """What is read of a nested model, which knows this function itself."""

    @property
    def space(self) -> SearchSpace: ...
    @property
    def switchable_norms(self) -> SwitchableNorms | None: ...
    def own_tensors(self, subnet: Subnet | None) -> dict[str, Tensor]: ...


class _Call(NamedTuple):
    """A call whose tensors, which nothing else reads, are corrected: weight and bias, or mean and
    variance.
    """

    operand: fx.Node
    tensors: list[fx.Node]
    is_norm: bool


def refitted(
    nested: _Nested,
    program: Program,
    keep: Keep,
    calibration: Iterable[Any] | None,
    own: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Tensors of the subnet that ``keep`` describes, by name and of the full size.

    ``own`` are those that it has already in place of the nested model's. What is alive of all
    batches, in both networks, is held at once.

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
    calls, left = _calls(program), _Left([], [])
    with left_as_found(root):
        root.eval()
        reference = Walk(program, root, _copies(batches), Keep({}), nested.own_tensors(whole))
        others = _on_these_batches(reference, calls)
        for stop in Walk(program, root, _copies(batches), _copy(keep), own).stops():
            call = calls.get(stop.node)
            if call is None:
                continue
            other = next(other for other in others if other.node is stop.node)
            if call.is_norm:
                subnet.correct(stop, call, _statistics(stop, call))
            elif stop.values(call.tensors[0])[0][0].numel() > MOST_INPUTS:
                left.wide.append(str(call.tensors[0].target))
            elif not subnet.reads_all(stop, other, call):
                targets = subnet.cut(other.outputs(), stop.node)
                subnet.correct(stop, call, _fitted(stop, call, targets, left))
    left.warn()
    return subnet.found


class _Left(NamedTuple):
    """Weights that are left as they are: of filters that read too much, or of too few rows."""

    wide: list[str]
    few: list[str]

    def warn(self) -> None:
        """Name them."""
        reasons = {
            f"a filter reads over {MOST_INPUTS} values, whose moments would take over 0.5 GiB": (
                self.wide
            ),
            "calibrate= gives too few rows to fit to some and hold out others; pass more samples": (
                self.few
            ),
        }
        for reason, names in reasons.items():
            if names:
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


def _calls(program: Program) -> dict[fx.Node, _Call]:
    """The calls whose tensors are corrected.

    A tensor that another call reads too stays as it is, for that one; so does one that is no
    parameter, or no matrix of real numbers, and a call under autocast.
    """
    readers: Counter[str] = Counter()
    for node in program.attrs:
        readers[str(node.target)] += len(node.users)
    parameters = program.graph.capture.tensors
    found: dict[fx.Node, _Call] = {}
    for node in program.graph.calls:
        bound, name = bind_arguments(node), op_name(node.target)
        is_norm = node in program.norms
        if is_norm:
            operands = [bound["running_mean"], bound["running_var"]]
        elif (name == "linear" or name in CONVOLUTIONS) and _is_layer(node, bound["weight"]):
            operands = [operand for operand in (bound["weight"], bound["bias"]) if operand]
        else:
            continue
        if all(
            operand.op == "get_attr"
            and readers[str(operand.target)] == 1
            and (is_norm or isinstance(parameters[str(operand.target)], nn.Parameter))
            for operand in operands
        ):
            found[node] = _Call(next(iter(bound.values())), operands, is_norm)
    return found


def _is_layer(node: fx.Node, weight: fx.Node) -> bool:
    """Whether the call is one of several filters, and if a convolution, on a batch."""
    matrix = weight.meta["val"]
    batched = op_name(node.target) == "linear" or node.meta["val"].ndim == matrix.ndim
    real = matrix.is_floating_point() and matrix.ndim > 1
    return batched and real and not blocks_of(node)


def _copy(keep: Keep) -> Keep:
    """The same, to be told the size of a batch."""
    return Keep(keep.sizes, keep.picks)


def _copies(batches: Sequence[list[Any]]) -> list[list[Any]]:
    """Inputs that a walk may write into."""
    return [[v.clone() if isinstance(v, Tensor) else v for v in flat] for flat in batches]


def _on_these_batches(walk: Walk, calls: Mapping[fx.Node, _Call]) -> Iterator[Stop]:
    """The stops of the whole network, whose norms have the statistics of what they get."""
    for stop in walk.stops():
        call = calls.get(stop.node)
        if call is not None and call.is_norm:
            for source, value in zip(call.tensors, _statistics(stop, call), strict=False):
                stop.put(source, value)
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
        keep, batched = _copy(self.keep), self.graph.capture.batched
        inputs = zip(program.inputs, flat, strict=True)
        size = next((v.shape[0] for node, v in inputs if node.name in batched), None)
        if size is not None and self.graph.batch is not None:
            keep.hold(self.graph.batch, size)
        return keep

    def cut(self, values: Sequence[Tensor], node: fx.Node) -> list[Tensor]:
        """What the subnet has of the whole network's ``values`` of a node, batch by batch."""
        dims = self.graph.dims[node]
        return [k.slice(x, dims) for k, x in zip(self.keeps, values, strict=True)]

    def reads_all(self, stop: Stop, other: Stop, call: _Call) -> bool:
        """Whether a filter of the subnet reads what it does in the whole network."""
        mine, whole = (each.values(call.tensors[0])[0].shape[1:] for each in (stop, other))
        there = self.cut(other.values(call.operand), call.operand)
        return mine == whole and all(map(_same, stop.values(call.operand), there))

    def correct(self, stop: Stop, call: _Call, new: Sequence[Tensor]) -> None:
        """Let the call run with ``new`` tensors, if there are any, and note them."""
        for source, values in zip(call.tensors, new, strict=False):
            stop.put(source, values)
            value, name = stop.values(source)[0], str(source.target)
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
    allowed = _ROUNDING * torch.finfo(mine.dtype).eps
    return float((mine - theirs).norm()) <= allowed * float(theirs.norm())


def _statistics(stop: Stop, call: _Call) -> list[Tensor]:
    """Mean and variance of what a BatchNorm gets in all batches; none of a single value."""
    values = stop.values(call.operand)
    count = sum(x.numel() // x.shape[1] for x in values)
    if count < 2:
        return []
    sums = [x.transpose(0, 1).flatten(1).double().sum(1) for x in values]
    mean = torch.stack(sums).sum(0) / count
    apart = [(x.transpose(0, 1).flatten(1) - mean[:, None]).square().sum(1) for x in values]
    return [mean, torch.stack(apart).sum(0) / (count - 1)]


def _fitted(stop: Stop, call: _Call, targets: Sequence[Tensor], left: _Left) -> list[Tensor]:
    """The weight and bias whose outputs are nearest to ``targets``; none where none are nearer."""
    window = Window(stop.node)
    weight, *biases = (stop.values(node)[0].detach() for node in call.tensors)
    groups = stop.args[0][0].shape[1] // weight.shape[1] if window.rank else 1
    apart = weight.unflatten(0, (groups, -1)).flatten(2)
    shift = biases[0].unflatten(0, (groups, -1)) if biases else None
    used, held = Fit(apart, shift), Fit(apart, shift)
    for i, (rows, outputs) in enumerate(sampled(window, stop.args, targets)):
        for fit, part in zip((used, held), _divided(i, len(rows), len(targets)), strict=True):
            fit.add(by_group(rows[part], groups).flatten(2), by_group(outputs[part], groups))
    if not used.count or not held.count:
        left.few.append(str(call.tensors[0].target))
        return []
    return [tensor for tensor in _best(used, held) if tensor is not None]


def _divided(batch: int, rows: int, batches: int) -> tuple[slice, slice]:
    """The rows of a batch that are fitted to, and those that are held out: of other samples."""
    if batches >= _FOURTH:
        out = batch % _FOURTH == _FOURTH - 1
        return (slice(0), slice(None)) if out else (slice(None), slice(0))
    first = rows - rows // _FOURTH
    return slice(first), slice(first, None)


def _best(used: Fit, held: Fit) -> tuple[Tensor | None, ...]:
    """The correction, from all rows, with the strongest ridge that is nearly the best on those held
    out; none where no correction is better.
    """
    before = held.error(held.weight, held.bias)
    errors = {ridge: held.error(*used.solve(ridge)) for ridge in _RIDGES}
    least = min(errors.values())
    if not least < before:
        return ()
    enough = min(_ENOUGH * least, before)
    ridge = max(ridge for ridge, error in errors.items() if error <= enough)
    used.merge(held)
    return used.solve(ridge)
