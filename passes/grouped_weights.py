"""Making one convolution a grouped one: its kernel, its bias, and a 1 x 1 convolution behind it.

A dense kernel (out, in, *k) becomes (out, in / g, *k): filter group j reads the j-th run of in / g
channels and makes the j-th run of out / g. New weights are drawn for that smaller fan-in (He et
al., 2015, as Deep Roots modifies it for compound layers): std = sqrt(2 / (k * k * in / g)).
"""

from __future__ import annotations

import math

import torch
from torch import fx, nn

from nestify.passes.spatial import Spatial
from nestify.rewriting import Rewriter
from nestify.rules import bind_arguments

__all__ = ["INITS", "diagonal_blocks", "regroup"]

INITS = ("he", "extract")


def regroup(edit: Rewriter, conv: Spatial, groups: int, init: str, *, inserts: bool) -> None:
    """Give ``conv`` that many filter groups in ``edit``; ``inserts`` adds a 1 x 1 behind it."""
    dense = edit.tensors[conv.weight]
    kernel = diagonal_blocks(dense.detach(), groups).clone()
    if init == "he":
        _draw(kernel, gain=2.0)
        bias = bind_arguments(conv.nodes[0]).get("bias")
        if isinstance(bias, fx.Node) and bias.op == "get_attr":
            name = str(bias.target)
            old = edit.tensors[name]
            edit.replace_tensor(name, _as(old, torch.zeros_like(old.detach())))
    edit.replace_tensor(conv.weight, _as(dense, kernel))
    for node in conv.nodes:
        edit.set_argument(node, "groups", groups)
    if inserts:
        _insert_embedding(edit, conv, dense, init)


def diagonal_blocks(kernel: torch.Tensor, groups: int) -> torch.Tensor:
    """The blocks on the diagonal of a dense kernel (out, in, *k), as a grouped one (out, in / g,
    *k).

    >>> diagonal_blocks(torch.arange(16.0).reshape(4, 4, 1), 2).squeeze().tolist()
    [[0.0, 1.0], [4.0, 5.0], [10.0, 11.0], [14.0, 15.0]]
    """
    outputs, inputs, *window = kernel.shape
    split = kernel.reshape(groups, outputs // groups, groups, inputs // groups, *window)
    blocks = torch.stack([split[g, :, g] for g in range(groups)])
    return blocks.reshape(outputs, inputs // groups, *window)


def _draw(kernel: torch.Tensor, gain: float) -> None:
    """Normal weights that keep the variance of the signal; ``gain`` is 2 behind a ReLU."""
    if not kernel.is_meta:
        nn.init.normal_(kernel, std=math.sqrt(gain / kernel[0].numel()))


def _as(tensor: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """``values`` as a parameter, frozen or not, where ``tensor`` is one."""
    if not isinstance(tensor, nn.Parameter):
        return values
    return nn.Parameter(values, requires_grad=tensor.requires_grad)


def _insert_embedding(edit: Rewriter, conv: Spatial, dense: torch.Tensor, init: str) -> None:
    """A linear combination of the filters of all groups; the identity where weights are kept."""
    window = [1] * (dense.ndim - 2)
    weight = dense.new_zeros(conv.outputs, conv.outputs, *window)
    if init == "he":
        _draw(weight, gain=1.0)
    else:
        weight.copy_(torch.eye(conv.outputs).reshape(weight.shape))
    path = edit.free_name(f"{conv.name}_embedding")
    first = conv.nodes[0]
    read = edit.add_tensor(first, f"{path}.weight", nn.Parameter(weight))
    for node in conv.nodes:
        added = edit.insert_call(node, _POINTWISE[dense.ndim - 2], (node, read), path=path)
        edit.divert(node, added)


_POINTWISE = {
    1: torch.ops.aten.conv1d.default,
    2: torch.ops.aten.conv2d.default,
    3: torch.ops.aten.conv3d.default,
}
