"""What every generated model is written with: imports, drawn numbers, and a module of its own."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

__all__ = ["PRELUDE", "double_precision", "names"]

PRELUDE = '''\
import torch
import torch.nn.functional as F
from torch import nn

aten = torch.ops.aten
torch.set_default_dtype(torch.float64)


def draw(seed, *shape, below=None, low=None, high=None):
    """Numbers from a seed: below an integer, or between two floats, or spread around zero."""
    generator = torch.Generator().manual_seed(seed)
    if below is not None:
        return torch.randint(below, shape, generator=generator)
    numbers = torch.rand(shape, generator=generator)
    if low is not None:
        return low + (high - low) * numbers
    spread = 1.5 if len(shape) < 2 else 3 / (numbers.numel() / shape[0]) ** 0.5
    return (2 * numbers - 1) * spread


def filled(module, seed):
    """The module with numbers from a seed in every tensor."""
    with torch.no_grad():
        for i, tensor in enumerate([*module.parameters(), *module.buffers()]):
            if tensor.is_floating_point():
                if tensor.ndim > 1:
                    tensor.copy_(draw(seed + i, *tensor.shape))
                else:
                    tensor.copy_(draw(seed + i, *tensor.shape, low=0.4, high=1.6))
    return module


class DropPath(nn.Module):
    """Drops whole samples in training."""

    def __init__(self, p):
        super().__init__()
        self.p = p

    def forward(self, x):
        if not self.training:
            return x
        keep = torch.empty(x.shape[:1] + (1,) * (x.ndim - 1), dtype=x.dtype).bernoulli_(1 - self.p)
        return x * keep / (1 - self.p)
'''


@contextmanager
def double_precision() -> Generator[None]:
    """Make new tensors float64, as the scripts do."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@cache
def names() -> dict[str, Any]:
    """What the text of forms can name."""
    found: dict[str, Any] = {}
    with double_precision():
        exec(compile(PRELUDE, "<fuzz>", "exec"), found)
    return found
