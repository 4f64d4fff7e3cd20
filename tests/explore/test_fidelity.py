"""How far the outputs of a subnet are from those of the full model."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch
from torch import nn

from nestify.errors import CaptureError
from nestify.explore.fidelity import fidelity
from nestify.space import SearchSpace, Unit


class Sliced(nn.Module):
    """Outputs follow the active share of one unit."""

    def __init__(self, full: Any) -> None:
        super().__init__()
        self.full = full
        self.space = SearchSpace((Unit("u", "channel", 4),))
        self.factor = 1.0

    def activate(self, subnet: Any) -> Any:
        self.factor = subnet["u"] / 4
        return torch.no_grad()

    def forward(self, x: torch.Tensor) -> Any:
        return {"out": self.full * self.factor, "index": torch.tensor(3)}


def scored(model: Sliced, size: int) -> float:
    evaluate = fidelity(cast(Any, model), (torch.zeros(1),))
    model.activate({"u": size})
    return evaluate(model)


def test_fidelity_is_one_for_the_full_model_and_half_for_zeros() -> None:
    assert scored(Sliced(torch.randn(3, 5)), 4) == 1.0
    assert scored(Sliced(torch.randn(3, 5)), 0) == pytest.approx(0.5)
    assert scored(Sliced(torch.randn(3, 5)), 2) == pytest.approx(1 / 1.5)


def test_fidelity_needs_outputs_to_compare() -> None:
    with pytest.raises(CaptureError, match="hold no floating-point tensor"):
        scored(Sliced(_Integer()), 4)
    with pytest.raises(CaptureError, match="are not finite"):
        scored(Sliced(torch.tensor([1.0, math.inf])), 4)
    with pytest.warns(UserWarning, match="all zero"):
        scored(Sliced(torch.zeros(3)), 4)


class _Integer:
    """Multiplies to an integer tensor."""

    def __mul__(self, factor: float) -> torch.Tensor:
        return torch.tensor(3)
