"""Models that make or replace tensors in their first forward are run once, on a copy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import nestify
from tests.capture.serving import assert_serves, nest


class Alibi(nn.Module):
    """Makes its bias on demand."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.o = nn.Linear(8, 16), nn.Linear(16, 4)
        self.register_buffer("bias", None, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = x.shape[1]
        if self.bias is None:
            apart = torch.arange(n)[None] - torch.arange(n)[:, None]
            self.register_buffer("bias", -apart.abs().float(), persistent=False)
        y = self.q(x)
        return self.o((y @ y.transpose(1, 2) + self.bias[:n, :n]).softmax(-1) @ y)


class Table(nn.Module):
    """Replaces an empty table."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.o = nn.Linear(8, 16), nn.Linear(16, 4)
        self.register_buffer("cos", torch.zeros(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(self.cos) < x.shape[1]:
            self.cos = torch.arange(x.shape[1]).float().cos()[:, None]
        return self.o(self.q(x) * self.cos)


@pytest.mark.parametrize("kind", [Alibi, Table])
def test_a_fresh_one_is_served(kind: type[nn.Module]) -> None:
    model, x = kind(), torch.randn(2, 6, 8)
    state = {name: tensor.shape for name, tensor in model.named_buffers()}
    nested = nest(model, x)
    assert {name: tensor.shape for name, tensor in model.named_buffers()} == state, "left as found"
    assert nested.graph.batch is not None
    assert_serves(model, x)


def test_lazy_layers_stay_lazy_in_the_model() -> None:
    model, x = nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(2, 8)
    nested = nest(model, x).eval()
    assert isinstance(model[0].weight, nn.UninitializedParameter)
    assert nested(x).shape == (2, 4)
    assert nested.get_submodule("0").weight.shape == (16, 8)


def test_one_that_cannot_be_copied_says_so() -> None:
    class Stubborn(Alibi):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("no copies")

    with pytest.raises(nestify.CaptureError, match=r"no copies.*call it once before"):
        nest(Stubborn(), torch.randn(2, 6, 8))
