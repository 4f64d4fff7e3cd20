"""Calls of layers and BatchNorms whose tensors nothing else reads, so that they may be replaced."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple

from torch import Tensor, fx, nn

from nestify.capture.autocast import blocks_of
from nestify.rules import bind_arguments, facts_of
from nestify.runtime.lockstep import Stop
from nestify.runtime.program import Program

__all__ = ["LayerCall", "layer_calls"]


class OwnTensor(NamedTuple):
    """A tensor that a call reads as ``operand``: the one of the model of that ``name``, which is
    the operand's transpose where ``flipped``.
    """

    operand: fx.Node
    name: str
    flipped: bool = False


class LayerCall(NamedTuple):
    """A call whose tensors, which nothing else reads, are corrected: weight and bias, or mean and
    variance. It reads its weight as (outputs, inputs, ...), or as (inputs, outputs) if ``turned``.
    """

    operand: fx.Node
    tensors: list[OwnTensor]
    is_norm: bool = False
    turned: bool = False

    def filters(self, stop: Stop) -> Tensor:
        """Its weight, (outputs, inputs, ...)."""
        weight = stop.values(self.tensors[0].operand)[0].detach()
        return weight.mT if self.turned else weight


def layer_calls(program: Program, norms: Collection[fx.Node]) -> dict[fx.Node, LayerCall]:
    """The calls whose tensors are corrected.

    A tensor that another call reads too stays as it is, for that one; so does one that is no
    parameter, or no matrix of real numbers, and a call under autocast.
    """
    readers: Counter[str] = Counter()
    for node in program.attrs:
        readers[str(node.target)] += len(node.users)
    parameters = program.graph.capture.tensors
    found: dict[fx.Node, LayerCall] = {}
    for node in program.graph.calls:
        call = _norm(node) if node in norms else _layer(node)
        if call is not None and all(
            readers[tensor.name] == 1
            and (call.is_norm or isinstance(parameters[tensor.name], nn.Parameter))
            for tensor in call.tensors
        ):
            found[node] = call
    return found


def _norm(node: fx.Node) -> LayerCall | None:
    bound = bind_arguments(node)
    tensors = [_tensor(bound[name]) for name in ("running_mean", "running_var")]
    return _call(bound["input"], tensors, is_norm=True)


def _layer(node: fx.Node) -> LayerCall | None:
    """The call of several filters, not under autocast, and if a convolution, on a batch."""
    bound, facts = bind_arguments(node), facts_of(node.target)
    layer = facts.layer
    if layer is None or blocks_of(node):
        return None
    if bound.get("beta", 1) != 1 or bound.get("alpha", 1) != 1:  # of addmm
        return None
    source, weight, bias, turned = layer
    matrix, shift = bound[weight].meta["val"], bound.get(bias)
    ndim = node.meta["val"].ndim if facts.slides else 2
    if matrix.ndim != ndim or not matrix.is_floating_point():
        return None
    if shift is None:
        return _call(bound[source], [_tensor(bound[weight])], turned=turned)
    if shift.meta["val"].ndim != 1:
        return None
    return _call(bound[source], [_tensor(bound[weight]), _tensor(shift)], turned=turned)


def _call(operand: fx.Node, tensors: Sequence[OwnTensor | None], **kind: bool) -> LayerCall | None:
    known = [tensor for tensor in tensors if tensor is not None]
    return LayerCall(operand, known, **kind) if len(known) == len(tensors) else None


def _tensor(operand: fx.Node) -> OwnTensor | None:
    """A tensor of the model, or its transpose; None for what other calls make."""
    if operand.op == "get_attr":
        return OwnTensor(operand, str(operand.target))
    source = operand.args[0] if operand.args else None
    if not facts_of(operand.target).permutes or not isinstance(source, fx.Node):
        return None
    if source.op != "get_attr" or len(operand.users) > 1 or source.meta["val"].ndim != 2:
        return None
    here, there = operand.meta["val"], source.meta["val"]
    flipped = (here.shape, here.stride()) != (there.shape, there.stride())
    return OwnTensor(operand, str(source.target), flipped)
