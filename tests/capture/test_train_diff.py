"""What training does otherwise: other outputs, operands, constants and sizes are said."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nestify
from tests.capture.serving import nest


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm = nn.Linear(8, 16), nn.BatchNorm1d(16)
        self.head, self.other = nn.Linear(16, 4), nn.Linear(16, 4)
        self.register_buffer("u", torch.ones(16))
        self.register_buffer("v", torch.ones(16))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.norm(self.body(x)))


class MoreOutputs(Net):
    def forward(self, x: torch.Tensor) -> object:
        f = self.features(x)
        return (self.head(f), f) if self.training else self.head(f)


class Named(Net):
    def forward(self, x: torch.Tensor) -> object:
        y = self.head(self.features(x))
        return {"logits": y} if self.training else (y,)


class Swapped(Net):
    def forward(self, x: torch.Tensor) -> object:
        f = self.features(x)
        y, z = self.head(f), self.other(f)
        return (y, z) if self.training else (z, y)


class OtherOrder(Net):
    def forward(self, x: torch.Tensor) -> object:
        f = self.features(x)
        y, z = self.head(f), self.other(f)
        return y - z if self.training else z - y


class OtherConstant(Net):
    def forward(self, x: torch.Tensor) -> object:
        return self.head(self.features(x) * torch.tensor([2.0 if self.training else 1.0] * 16))


class OtherBuffer(Net):
    def forward(self, x: torch.Tensor) -> object:
        return self.head(self.features(x) * (self.u if self.training else self.v))


class OtherView(Net):
    def forward(self, x: torch.Tensor) -> object:
        shape = (-1, 4, 4) if self.training else (-1, 2, 8)
        return self.head(self.features(x)) + self.body(x).view(shape).sum((1, 2))[:, None]


class OtherSlice(Net):
    def forward(self, x: torch.Tensor) -> object:
        f = self.features(x)
        return self.head(f) + f[:, : 8 if self.training else 12].mean(1, keepdim=True)


SAID: dict[type[nn.Module], str] = {
    MoreOutputs: r"returns \(tensor, tensor\) in training and tensor in eval",
    Named: r"returns \{'logits': tensor\} in training and \(tensor,\) in eval",
    Swapped: "returns other tensors in training",
    OtherOrder: r"test_train_diff.py:\d+\) computes with other tensors .*: sub;",
    OtherConstant: r"test_train_diff.py:\d+\) computes with other tensors .*: mul;",
    OtherBuffer: r"test_train_diff.py:\d+\) computes with other tensors .*: mul;",
    OtherView: r"computes with other tensors or sizes in training: view;",
    OtherSlice: r"slice \(.*test_train_diff.py:\d+\) has end=8 in training and 12 in eval",
}


@pytest.mark.parametrize("kind", SAID, ids=lambda kind: kind.__name__)
def test_it_is_said(kind: type[nn.Module]) -> None:
    with pytest.warns(nestify.NestifyWarning, match=SAID[kind]):
        nest(kind(), torch.randn(4, 8))


class SameInBoth(Net):
    """Asks for the mode, and does the same in both."""

    def forward(self, x: torch.Tensor) -> object:
        assert self.training in (True, False)
        return self.head(self.features(x) + torch.tensor([0.5] * 16))


class OwnTrain(Net):
    """Sets a number of its own in ``train``, and never asks for the mode."""

    scale = 1.0

    def train(self, mode: bool = True) -> OwnTrain:
        self.scale = 2.0 if mode else 1.0
        return super().train(mode)

    def forward(self, x: torch.Tensor) -> object:
        return self.head(self.features(x * self.scale))


@pytest.mark.parametrize("kind", [SameInBoth, OwnTrain])
def test_what_a_nested_model_follows_is_not(kind: type[nn.Module]) -> None:
    model, x = kind(), torch.randn(4, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error", nestify.NestifyWarning)
        nested = nest(model, x)
    nested.activate(nested.space.largest())
    assert torch.equal(nested.train()(x), model.train()(x))
    assert torch.equal(nested.eval()(x), model.eval()(x))


class Merging(nn.Module):
    """An adapter that is added to the weight in eval, as loralib does."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.head = nn.Linear(8, 8), nn.Linear(8, 4)
        self.down, self.up = nn.Parameter(torch.randn(2, 8)), nn.Parameter(torch.randn(8, 2))
        self.merged = False

    def train(self, mode: bool = True) -> Merging:
        if mode is self.merged:
            self.base.weight.data += (-1 if mode else 1) * (self.up @ self.down)
            self.merged = not mode
        return super().train(mode)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.base(x)
        return self.head(F.relu(y if self.merged else y + x @ self.down.T @ self.up.T))


@pytest.mark.filterwarnings("ignore::nestify.NestifyWarning")
def test_weights_that_eval_changes() -> None:
    """Nothing is left in the model, and nothing of what eval() did is lost in silence."""
    model, x = Merging(), torch.randn(4, 8)
    before = model.base.weight.clone()
    with pytest.raises(nestify.CaptureError, match=r"Where eval\(\) changes weights"):
        nest(model, x)
    assert torch.equal(model.base.weight, before)
    assert not model.merged
    nested = nest(model.eval(), x).eval()
    assert torch.equal(nested(x), model(x))
