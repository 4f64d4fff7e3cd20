"""A model that is captured on one device runs, nested and extracted, on any other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import nestify


class Positions(nn.Module):
    """Makes positions, a mask and a constant in its forward, on the device of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.up, self.down = nn.Embedding(32, 8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        length = x.shape[1]
        mask = torch.full((length, length), float("-inf"), device=x.device).triu(1)
        x = mask.softmax(-1) @ (x + self.embedding(torch.arange(length, device=x.device)))
        return self.down(self.up(x).relu()) + torch.tensor([0.5] * 8, device=x.device)


class Elsewhere(TorchDispatchMode):
    """Refuses tensors that are made on another device than ``device``."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in pytree.tree_leaves(out):
            if isinstance(value, torch.Tensor):
                assert value.device.type == self.device, func
        return out


def nested() -> nestify.NestedModel:
    return nestify.transform(Positions(), "fn3-neuron", (torch.randn(2, 5, 8),)).eval()


MADE: dict[str, Callable[[], nn.Module]] = {
    "nested": nested,
    "extracted": lambda: nested().extract({"up": 8}),
    "extracted, in training": lambda: nested().extract({"up": 8}).train(),
    "masked": lambda: nested().masked(),
}


@pytest.mark.parametrize("kind", MADE)
def test_what_a_forward_makes_lies_where_its_inputs_do(kind: str) -> None:
    model = MADE[kind]().to("meta")
    with Elsewhere("meta"):
        out = model(torch.randn(3, 5, 8, device="meta"))
    assert out.device.type == "meta" and out.shape == (3, 5, 8)


def test_masks_lie_where_the_nested_model_does() -> None:
    masked = nested().to("meta").masked()
    assert {buffer.device.type for _, buffer in masked.named_buffers()} == {"meta"}
