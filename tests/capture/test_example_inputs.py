"""Example inputs that are inferred: the usual cases, and an error that says what was tried."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import nestify
from nestify.capture.example_inputs import infer_inputs
from nestify.errors import CaptureError


class WithConfig(nn.Module):
    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        vars(self).update(attributes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


class Head(nn.Module):
    """Runs on one size only."""

    def __init__(self, conv: nn.Module, features: int) -> None:
        super().__init__()
        self.conv, self.fc = conv, nn.Linear(features, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(x).flatten(1))


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (WithConfig(default_cfg={"input_size": (3, 40, 40)}), [1, 3, 40, 40]),
        (WithConfig(pretrained_cfg={"input_size": (3, 24, 24)}), [1, 3, 24, 24]),
        (WithConfig(default_cfg={"url": ""}), [1, 3, 224, 224]),
        (nn.Sequential(nn.Conv1d(5, 4, 3)), [1, 5, 16]),
        (nn.Sequential(nn.Conv3d(2, 4, 3)), [1, 2, 16, 16, 16]),
        (Head(nn.Conv2d(1, 2, 1), 2 * 28 * 28), [1, 1, 28, 28]),
        (nn.Sequential(nn.Flatten(), nn.Linear(7, 3)), [1, 7]),
        (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), [1, 8]),
    ],
)
def test_the_usual_cases(model: nn.Module, shape: list[int]) -> None:
    args, kwargs = infer_inputs(model)
    assert [list(x.shape) for x in args] == [shape]
    assert kwargs == {}


class Tokens(nn.Module):
    def __init__(self, words: int) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(words, 8), nn.Linear(8, 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(ids)).relu()


@pytest.mark.parametrize("words", [3, 100])
def test_tokens(words: int) -> None:
    (tokens,), _ = infer_inputs(Tokens(words))
    assert tokens.dtype == torch.int64
    assert int(tokens.max()) < words
    assert nestify.trace(Tokens(words)).batch is not None


def test_dtype_follows_the_model() -> None:
    (x,), _ = infer_inputs(nn.Sequential(nn.Linear(3, 2)).double())
    assert x.dtype == torch.float64


class Dummy(Tokens):
    dummy_inputs = {"ids": torch.ones(2, 3, dtype=torch.int64)}  # noqa: RUF012 - as transformers has it


def test_dummy_inputs() -> None:
    args, kwargs = infer_inputs(Dummy(5))
    assert args == ()
    assert kwargs["ids"].shape == (2, 3)


class Odd(nn.Module):
    """No plausible input fits: two inputs, 13 features."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(13, 2)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.fc(x) + y


def test_nothing_fits() -> None:
    with pytest.raises(CaptureError) as caught:
        nestify.trace(Odd())
    message = str(caught.value)
    assert "float32 [1, 13] (Linear) (TypeError: " in message
    assert "float32 [1, 16, 13]" in message
    assert "Pass example_inputs=(x, ...)" in message
    assert "\n" not in message


def test_nothing_to_try() -> None:
    with pytest.raises(CaptureError, match="Tried: nothing"):
        nestify.trace(nn.Identity())


def test_trial_runs_leave_no_trace() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), Counts())
    state = torch.get_rng_state()
    infer_inputs(model)
    assert model.training
    assert int(model[2].calls) == 0
    assert torch.equal(state, torch.get_rng_state())


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x + torch.rand_like(x)
