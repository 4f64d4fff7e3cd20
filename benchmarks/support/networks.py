"""Known networks with random weights, each with an input."""

from __future__ import annotations

import importlib
import importlib.util
import runpy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.support.vision_ops import declare_vision_ops

NETS = ("resnet50", "resnet152", "densenet201", "mobilenet_v2", "convnext_tiny")
EXAMPLES = Path(__file__).parents[2] / "examples"


class Block(nn.Module):
    """A pre-norm transformer block with one projection to queries, keys and values."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Attention and an MLP, each added to its input."""
        batch, length, dim = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        x = x + self.proj(y.flatten(2))
        return x + self.mlp(self.norm2(x))


def transformer(depth: int = 24, dim: int = 384) -> tuple[nn.Module, Tensor]:
    """Blocks with heads of 64, a norm and a classifier."""
    blocks = (Block(dim, dim // 64) for _ in range(depth))
    return nn.Sequential(*blocks, nn.LayerNorm(dim), nn.Linear(dim, 10)), torch.randn(1, 64, dim)


def vision(name: str) -> tuple[nn.Module, Tensor]:
    """A network of torchvision, and an image."""
    declare_vision_ops()
    return importlib.import_module("torchvision.models").get_model(name), torch.randn(
        1, 3, 224, 224
    )


def example(name: str) -> tuple[nn.Module, Tensor]:
    """The model of one of our examples, and its input."""
    found = runpy.run_path(str(EXAMPLES / f"{name}.py"))
    model: Any = found["model"]
    inputs: Any = found["example_inputs"]
    if not isinstance(model, nn.Module):
        model = model()
    if not isinstance(inputs, tuple):
        inputs = inputs()
    return model, inputs[0]


def networks() -> dict[str, Callable[[], tuple[nn.Module, Tensor]]]:
    """What is compiled, by name: our examples where torchvision is not installed."""
    if importlib.util.find_spec("torchvision"):
        found = {name: partial(vision, name) for name in NETS}
    else:
        print("torchvision is not installed: the models of examples/ stand in for its own")
        found = {path.stem: partial(example, path.stem) for path in sorted(EXAMPLES.glob("*.py"))}
    return {**found, "transformer, 24 layers": transformer}
