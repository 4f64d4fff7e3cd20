"""One model of the zoo: how it is built, on which inputs, and what is known of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class ZooModel:
    """One row of the zoo.

    ``build`` makes the model with random weights, ``inputs`` the arguments of its forward for one
    batch size. ``sample`` models run in every suite. ``not_captured`` holds the words of the error
    where torch.export itself cannot follow the model; ``low`` says why less than 0.8 of its
    parameters are elastic; ``dtype`` is float64 but where the model's own code needs another.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int], Arguments]
    sample: bool = False
    not_captured: str = ""
    low: str = ""
    dtype: torch.dtype = torch.float64

    def make(self) -> tuple[nn.Module, Arguments]:
        """The model in eval and in ``dtype``, every part of it alive, with inputs of batch 2."""
        torch.manual_seed(0)
        model = enliven(self.build()).to(self.dtype).eval()
        return model, self.arguments(2)

    def arguments(self, batch: int) -> Arguments:
        """Inputs of a batch size, in ``dtype``."""

        def cast(leaf: Any) -> Any:
            floats = isinstance(leaf, Tensor) and leaf.is_floating_point()
            return leaf.to(self.dtype) if floats else leaf

        return pytree.tree_map(cast, self.inputs(batch))


def enliven(model: nn.Module) -> nn.Module:
    """Give every constant tensor random values: a zero head or equal scales would hide a wrong
    slice, and so would running statistics that are all alike.
    """
    floats = (t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point())
    with torch.no_grad():
        for tensor in floats:
            if tensor.numel() < 2 or bool((tensor != tensor.flatten()[0]).any()):
                continue
            if tensor.ndim < 2:
                tensor.uniform_(0.5, 1.5)
            else:
                tensor.normal_(0, math.sqrt(len(tensor) / tensor.numel()))
    return model


def image(side: int, channels: int = 3) -> Callable[[int], Arguments]:
    """Inputs of one square image."""
    return lambda batch: ((torch.randn(batch, channels, side, side),), {})


def clip(frames: int, side: int) -> Callable[[int], Arguments]:
    """Inputs of one video clip."""
    return lambda batch: ((torch.randn(batch, 3, frames, side, side),), {})
