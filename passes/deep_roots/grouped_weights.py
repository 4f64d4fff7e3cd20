"""Making one convolution a grouped one: its kernel, its bias, and a 1 x 1 convolution behind it.

A dense kernel (out, in, *k) becomes (out, in / g, *k): filter group j reads the j-th run of in / g
channels and makes the j-th run of out / g. New weights are drawn for that smaller fan-in (He et
al., 2015, as Deep Roots modifies it for compound layers): std = sqrt(2 / (k * k * in / g)).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from itertools import groupby

import torch
from torch import fx, nn

from nestify.graph.rewriter import Rewriter
from nestify.passes.deep_roots.spatial import Spatial
from nestify.rules import bind_arguments
from nestify.support.module_tree import made_like

__all__ = ["INITS", "diagonal_blocks", "divide", "regroup"]

INITS = ("he", "extract", "project")


def regroup(
    edit: Rewriter, conv: Spatial, groups: int, init: str, *, inserts: bool
) -> list[fx.Node]:
    """Give ``conv`` that many filter groups in ``edit``; ``inserts`` adds a 1 x 1 behind it.

    Returns the calls of that 1 x 1, one behind each call of the convolution.
    """
    dense = edit.tensors[conv.weight]
    kernel = diagonal_blocks(dense.detach(), groups).clone()
    if init == "he":
        _draw(kernel, gain=2.0)
        bias = bind_arguments(conv.nodes[0]).get("bias")
        if isinstance(bias, fx.Node) and bias.op == "get_attr":
            name = str(bias.target)
            old = edit.tensors[name]
            edit.replace_tensor(name, made_like(old, torch.zeros_like(old.detach())))
    edit.replace_tensor(conv.weight, made_like(dense, kernel))
    for node in conv.nodes:
        edit.set_argument(node, "groups", groups)
    return _insert_embedding(edit, conv, dense, conv.nodes, init) if inserts else []


def divide(
    edit: Rewriter, conv: Spatial, sizes: Sequence[tuple[int, int]], *, inserts: bool
) -> tuple[dict[fx.Node, tuple[fx.Node, int]], list[fx.Node]]:
    """Give ``conv`` filter groups of unequal sizes, (outputs, inputs) each, from its kernel.

    Groups of one size that stand side by side are one grouped convolution; those of each size read
    their run of channels and their outputs are joined again. Returns each new convolution with the
    call that it was a part of and its first output channel, and the calls of an added 1 x 1.
    """
    dense = edit.tensors[conv.weight]
    runs = [(*size, len(list(same))) for size, same in groupby(sizes)]
    parts: dict[fx.Node, tuple[fx.Node, int]] = {}
    ends: list[fx.Node] = []
    for node in conv.nodes:
        bound = bind_arguments(node)
        source, bias = bound["input"], bound["bias"]
        widths = [inputs * count for _, inputs, count in runs]
        pieces = edit.insert_call(
            node, torch.ops.aten.split_with_sizes.default, (source, widths, 1), path=conv.name
        )
        last, made, at, first = pieces, list[fx.Node](), 0, 0
        for index, (outputs, inputs, count) in enumerate(runs):
            rows = slice(at, at + outputs * count)
            name = f"{conv.name}.{index}"
            block = dense.detach()[rows, first : first + inputs * count]
            tensors = {"weight": made_like(dense, diagonal_blocks(block, count).clone())}
            if bias is not None:
                old = edit.tensors[str(bias.target)]
                tensors["bias"] = made_like(old, old.detach()[rows].clone())
            read = {
                role: edit.tensor_node(node, f"{name}.{role}", t) for role, t in tensors.items()
            }
            piece = edit.insert_call(last, operator.getitem, (pieces, index), path=conv.name)
            args = {**bound, "input": piece, **read, "groups": count}
            last = edit.insert_call(piece, node.target, tuple(args.values()), path=name)
            parts[last] = (node, at)
            made.append(last)
            at, first = at + outputs * count, first + inputs * count
        joined = edit.insert_call(last, torch.ops.aten.cat.default, (made, 1), path=conv.name)
        edit.divert(node, joined)
        ends.append(joined)
    edit.drop_tensor(conv.weight)
    bias = bind_arguments(conv.nodes[0])["bias"]
    if bias is not None:
        edit.drop_tensor(str(bias.target))
    return parts, _insert_embedding(edit, conv, dense, ends, "extract") if inserts else []


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


def _insert_embedding(
    edit: Rewriter, conv: Spatial, dense: torch.Tensor, ends: Sequence[fx.Node], init: str
) -> list[fx.Node]:
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
    made: list[fx.Node] = []
    for node in ends:
        added = edit.insert_call(node, _POINTWISE[dense.ndim - 2], (node, read), path=path)
        edit.divert(node, added)
        made.append(added)
    return made


_POINTWISE = {
    1: torch.ops.aten.conv1d.default,
    2: torch.ops.aten.conv2d.default,
    3: torch.ops.aten.conv3d.default,
}
