"""Graphs of any length, built without running or tracing a model: what time is measured against.

Each builder takes a number of nodes and gives a capture of about that many, on meta tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from nestify.capture.captured import Capture

aten = torch.ops.aten


class Tape:
    """Writes a captured graph node by node; shapes come from running each op on meta tensors."""

    def __init__(self, *shape: int) -> None:
        self.graph = fx.Graph()
        self.tensors: dict[str, torch.Tensor] = {}
        self.example = torch.empty(shape, device="meta")
        self.input = self.graph.placeholder("x")
        self.input.meta.update(val=self.example, path="")

    def weight(self, name: str, *shape: int) -> fx.Node:
        """A parameter, by name."""
        self.tensors[name] = nn.Parameter(torch.empty(shape, device="meta"))
        node = self.graph.get_attr(name)
        node.meta.update(val=self.tensors[name], path="")
        return node

    def call(self, op: Any, *args: Any) -> fx.Node:
        """A call of an ATen op."""
        node = self.graph.call_function(op, args)
        with torch.no_grad():
            val = op(*fx.map_arg(args, lambda n: n.meta["val"]))
        node.meta.update(val=val, path="")
        return node

    def linear(self, x: fx.Node, out: int) -> fx.Node:
        """A linear map with bias to ``out`` features, named after its place in the graph."""
        name = f"l{len(self.tensors)}"
        weight = self.weight(f"{name}.weight", out, int(x.meta["val"].shape[-1]))
        return self.call(aten.linear.default, x, weight, self.weight(f"{name}.bias", out))

    def conv(self, x: fx.Node, out: int) -> fx.Node:
        """A 3x3 convolution to ``out`` channels."""
        weight = self.weight(f"c{len(self.tensors)}.weight", out, int(x.meta["val"].shape[1]), 3, 3)
        return self.call(aten.conv2d.default, x, weight, None, [1, 1], [1, 1])

    def norm(self, x: fx.Node) -> fx.Node:
        """A layer norm with scale over the last dim."""
        width = int(x.meta["val"].shape[-1])
        scale = self.weight(f"n{len(self.tensors)}.weight", width)
        return self.call(aten.layer_norm.default, x, [width], scale)

    def done(self, *outputs: fx.Node) -> Capture:
        """The capture of all that was written."""
        self.graph.output(list(outputs))
        values = [node.meta["val"] for node in outputs]
        return Capture(
            nn.Module(),
            self.graph,
            self.tensors,
            {name: name for name in self.tensors},
            (self.example,),
            {},
            pytree.tree_flatten(((self.example,), {}))[1],
            pytree.tree_flatten(values[0] if len(values) == 1 else tuple(values))[1],
            frozenset({"x"}),
        )


def residual_convs(nodes: int) -> Capture:
    """``x + conv(relu(conv(x)))``, 6 nodes a block."""
    tape = Tape(2, 16, 8, 8)
    x = tape.conv(tape.input, 16)
    for _ in range(nodes // 6):
        y = tape.conv(tape.call(aten.relu.default, tape.conv(x, 24)), 16)
        x = tape.call(aten.add.Tensor, x, y)
    return tape.done(tape.linear(tape.call(aten.mean.dim, x, [2, 3]), 10))


def transformer(nodes: int) -> Capture:
    """Pre-norm blocks with fused qkv, 4 heads and an MLP, 33 nodes a block."""
    tape = Tape(2, 8, 32)
    x = tape.linear(tape.input, 32)
    for _ in range(nodes // 33):
        qkv = tape.call(aten.view.default, tape.linear(tape.norm(x), 96), [2, 8, 3, 4, 8])
        qkv = tape.call(aten.permute.default, qkv, [2, 0, 3, 1, 4])
        q, k, v = (tape.call(aten.select.int, qkv, 0, i) for i in range(3))
        y = tape.call(aten.scaled_dot_product_attention.default, q, k, v)
        y = tape.call(aten.flatten.using_ints, tape.call(aten.transpose.int, y, 1, 2), 2)
        x = tape.call(aten.add.Tensor, x, tape.linear(y, 32))
        y = tape.call(aten.gelu.default, tape.linear(tape.norm(x), 64))
        x = tape.call(aten.add.Tensor, x, tape.linear(y, 32))
    return tape.done(tape.linear(x, 10))


def branches(nodes: int) -> Capture:
    """Four convolutions side by side, concatenated and mixed, 11 nodes a block."""
    tape = Tape(2, 16, 8, 8)
    x = tape.input
    for _ in range(nodes // 11):
        parts = [tape.conv(x, 8) for _ in range(4)]
        x = tape.conv(tape.call(aten.cat.default, parts, 1), 16)
    return tape.done(tape.linear(tape.call(aten.mean.dim, x, [2, 3]), 10))


def slices(nodes: int) -> Capture:
    """One wide dim cut again and again, each piece read by a layer: 5 nodes a cut."""
    count = nodes // 5
    tape = Tape(2, 4)
    x = tape.linear(tape.input, 2 * count + 2)
    total = tape.linear(tape.input, 4)
    for _ in range(count):
        width = int(x.meta["val"].shape[1])
        piece = tape.call(aten.slice.Tensor, x, 1, 0, 2)
        x = tape.call(aten.slice.Tensor, x, 1, 2, width)
        weight = tape.weight(f"w{len(tape.tensors)}.weight", 4, 2)
        total = tape.call(aten.add.Tensor, total, tape.call(aten.linear.default, piece, weight))
    return tape.done(tape.linear(total, 10))


def mlp(nodes: int) -> Capture:
    """Linear layers one after the other, 3 nodes a layer and one for its activation."""
    tape = Tape(2, 8)
    x = tape.input
    for _ in range(nodes // 4):
        x = tape.call(aten.relu.default, tape.linear(x, 8))
    return tape.done(tape.linear(x, 10))


BUILDERS: dict[str, Callable[[int], Capture]] = {
    "residual convs": residual_convs,
    "transformer": transformer,
    "branches, concat": branches,
    "slices of one dim": slices,
    "MLP": mlp,
}
