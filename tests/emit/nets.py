"""Small networks, one for each thing that an exporter may get wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

aten = torch.ops.aten


class Residual(nn.Module):
    """Two convolutions with BatchNorm on one input: exporters have given both one fused bias."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.right = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.left(x) + self.right(x))


class Attention(nn.Module):
    """Fused qkv into scaled_dot_product_attention, between layer norms."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.qkv = nn.Linear(16, 48)
        self.out = nn.Linear(16, 16)
        self.scale = nn.Parameter(torch.rand(16))

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(x)).reshape(x.shape[0], x.shape[1], 3, 4, 4).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        y = self.out(y.transpose(1, 2).reshape(x.shape[0], x.shape[1], 16))
        return F.layer_norm(x + y * self.scale, (16,))


class Shuffle(nn.Module):
    """Chunk, cat and a channel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Conv2d(4, 4, 3, padding=1, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        y = torch.cat([a, self.branch(b)], dim=1)
        n, c, h, w = y.shape
        return y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class Nested(nn.Module):
    """A dict in, a dict with a tuple out, and a keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, batch: dict[str, Tensor], *, gain: Tensor) -> dict[str, Any]:
        y = self.fc(batch["left"]) * gain
        return {"logits": y, "aux": (y + 1, batch["right"].sum(dim=1))}


class Tied(nn.Module):
    """Integer tokens in, and an output layer that shares the embedding's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embed(tokens)))


class Fixed(nn.Module):
    """A network of one batch size: 2."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.view(2, 6))


def aten_graph() -> fx.GraphModule:
    """What an extracted subnet looks like: modules at their paths, aten calls between them."""
    root = nn.Module()
    root.layer1 = nn.Module()
    root.layer1.add_module("0", nn.Conv2d(3, 6, 3, padding=1))
    root.layer1.add_module("2", nn.BatchNorm2d(6))
    root.shift = nn.Parameter(torch.rand(6, 1, 1))
    root.fc = nn.Linear(24, 5)
    graph = fx.Graph()
    x = graph.placeholder("x")
    y = graph.call_module("layer1.2", (graph.call_module("layer1.0", (x,)),))
    y = graph.call_function(aten.relu_.default, (y,))
    y = graph.call_function(aten.add.Tensor, (y, graph.get_attr("shift")))
    y = graph.call_function(aten.adaptive_avg_pool2d.default, (y, [4, 2]))
    first = graph.call_function(aten.slice.Tensor, (y, 1, 0, 3))
    last = graph.call_function(aten.slice.Tensor, (y, 1, 3, 2**63 - 1))
    y = graph.call_function(
        aten.mul.Tensor, (first, graph.call_function(aten.neg.default, (last,)))
    )
    size = graph.call_function(aten.sym_size.int, (x, 0))
    y = graph.call_function(aten.view.default, (y, [size, -1]))
    graph.output(graph.call_module("fc", (y,)))
    return fx.GraphModule(root, graph)


def sequential(*modules: nn.Module) -> Callable[[], nn.Module]:
    """A factory of a traced chain."""
    return lambda: fx.symbolic_trace(copy.deepcopy(nn.Sequential(*modules)))


def images(batch: int = 2, channels: int = 3) -> tuple[Tensor, ...]:
    """Random images."""
    return (torch.randn(batch, channels, 8, 8),)


NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Any, ...]]]] = {
    "residual": (lambda: fx.symbolic_trace(Residual()), images),
    "depthwise": (sequential(nn.Conv2d(4, 4, 3, groups=4), nn.ReLU6()), lambda: images(2, 4)),
    "grouped": (sequential(nn.Conv2d(4, 8, 3, groups=2), nn.SiLU()), lambda: images(1, 4)),
    "linear": (sequential(nn.Linear(8, 4), nn.GELU(), nn.Linear(4, 2)), images),
    "transposed": (sequential(nn.ConvTranspose2d(3, 4, 2, stride=2)), images),
    "conv3d": (
        sequential(nn.Conv3d(2, 4, 3, padding=1), nn.BatchNorm3d(4), nn.MaxPool3d(2)),
        lambda: (torch.randn(2, 2, 4, 4, 4),),
    ),
    "attention": (Attention, lambda: (torch.randn(2, 5, 16),)),
    "shuffle": (lambda: fx.symbolic_trace(Shuffle()), lambda: images(2, 8)),
    "tied": (lambda: fx.symbolic_trace(Tied()), lambda: (torch.randint(11, (2, 7)),)),
    "aten": (aten_graph, images),
}


def build(name: str, seed: int = 0) -> tuple[nn.Module, tuple[Any, ...]]:
    """A network of the table in eval mode, with norms that do something, and its example inputs."""
    torch.manual_seed(seed)
    factory, inputs = NETS[name]
    model = factory()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return model.eval(), inputs()


def nested_call() -> tuple[nn.Module, dict[str, Any]]:
    """:class:`Nested` with the arguments of ``export``."""
    batch = {"left": torch.randn(2, 4), "right": torch.randn(2, 5)}
    arguments = {"example_inputs": (batch,), "example_kwargs": {"gain": torch.rand(2, 3)}}
    return Nested().eval(), arguments
