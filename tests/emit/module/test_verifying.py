"""Extraction verifies what it gives, calibrated or not, and leaves the model alone."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

import nestify
from nestify.errors import UsageError, VerificationError
from nestify.nested import model as nested_module
from tests.emit.module.networks import RECIPE, resnet


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is extracted has a wrong bias."""
    honest = nested_module.emit

    def emit(*args: Any) -> fx.GraphModule:
        slim = honest(*args)
        slim.get_parameter("fc.bias").data += 1
        return slim

    monkeypatch.setattr(nested_module, "emit", emit)


@pytest.mark.usefixtures("broken")
def test_a_wrong_result_is_refused() -> None:
    nested = resnet()
    with pytest.raises(VerificationError, match="differs from the nested model by") as caught:
        nested.extract(nested.space.at(0.5))
    assert 0.01 < caught.value.error < math.inf
    nested.extract(nested.space.at(0.5), verify=False)


def test_verification_leaves_the_model_alone() -> None:
    nested = resnet()
    nested.train()
    nested.get_submodule("stem.1").eval()
    state = copy.deepcopy(nested.state_dict())
    modes = [module.training for module in nested.modules()]
    nested.extract(nested.space.at(0.5))
    assert modes == [module.training for module in nested.modules()]
    for name, tensor in nested.state_dict().items():
        assert torch.equal(tensor, state[name])


@pytest.mark.parametrize("labelled", [False, True])
def test_calibration(labelled: bool) -> None:
    nested = resnet()
    batches = [torch.randn(8, 3, 8, 8) + 3 for _ in range(3)]
    data = [(x, torch.zeros(8)) for x in batches] if labelled else batches
    slim = nested.extract(nested.space.at(0.5), calibrate=data)
    norm = slim.get_submodule("stem.1")
    conv = slim.get_submodule("stem.0")
    outs = [conv(x) for x in batches]
    mean = torch.stack([out.mean((0, 2, 3)) for out in outs]).mean(0)
    torch.testing.assert_close(norm.running_mean, mean, rtol=1e-4, atol=1e-5)
    assert not any(module.training for module in slim.modules())
    assert norm.momentum == 0.1
    with pytest.raises(UsageError, match="at least one batch"):
        nested.extract(nested.space.at(0.5), calibrate=[])


@pytest.mark.usefixtures("broken")
def test_calibration_still_verifies() -> None:
    nested = resnet()
    with pytest.raises(VerificationError):
        nested.extract(nested.space.at(0.5), calibrate=[torch.randn(4, 3, 8, 8)])


class Restless(nn.Module):
    """Random in eval, writes into its input, and returns infinities."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.b(F.dropout(F.relu(self.a(x.add_(1.0))), 0.5))
        return y, y.clamp(max=0).log()


def test_verification_of_a_restless_model() -> None:
    x = torch.zeros(2, 6)
    nested = nestify.transform(Restless(), RECIPE, (x,))
    nested.extract(nested.space.at(0.5))
    assert not x.any()
