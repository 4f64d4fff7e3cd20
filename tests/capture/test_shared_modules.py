"""Modules that lie at two paths: torch.export runs stand-ins for them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import nestify
from tests.capture.serving import assert_serves, nest
from tests.fuzz.training_step import apart, trained


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, act: nn.Module) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(inputs, outputs, 3, padding=1), act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.conv(x))


class SharedActivation(nn.Module):
    """One ReLU in two blocks, as in ultralytics; BatchNorm and Dropout beside them."""

    def __init__(self) -> None:
        super().__init__()
        act = nn.ReLU()
        self.a, self.b = Block(3, 8, act), Block(8, 8, act)
        self.bn, self.drop, self.head = nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(self.bn(self.b(self.a(x)))).mean((2, 3)))


class SharedLayers(nn.Module):
    """Layers with parameters, by name and in a Sequential beside these names."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn, self.c = nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Linear(12, 3)
        self.drop = nn.Dropout(0.3)
        self.layers = nn.Sequential(self.a, self.bn, nn.ReLU(), self.drop, self.c)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Drop(nn.Module):
    """Drops whole samples in training, with no parameters."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * x.new_empty(len(x), 1).bernoulli_(0.5) if self.training else x


class SharedDrop(nn.Module):
    """One stochastic module, called twice."""

    def __init__(self) -> None:
        super().__init__()
        drop = Drop()
        self.first = nn.Sequential(nn.Linear(6, 12), drop)
        self.second = nn.Sequential(nn.Linear(12, 5), drop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


class Training(SharedActivation):
    """Computes more in training."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        return y + self.head.bias if self.training else y


CASES: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "a shared activation": (SharedActivation, (4, 3, 8, 8)),
    "layers by two names": (SharedLayers, (4, 6)),
    "a stochastic module": (SharedDrop, (4, 6)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_training_step_is_the_original_s(name: str) -> None:
    kind, shape = CASES[name]
    model, x = kind().eval(), torch.randn(shape)
    nested = nest(model, x)
    with nested.activate(nested.space.largest()):
        where, error = apart(trained(model, (x,), {}), trained(nested, (x,), {}))
    assert error <= 1e-6, where
    assert_serves(copy.deepcopy(model), x)


def test_what_is_extracted_has_its_norms_and_dropout_and_trains_them() -> None:
    x = torch.randn(4, 3, 8, 8)
    nested = nest(SharedActivation(), x)
    slim = nested.extract(nested.space.at(0.5))
    assert {"BatchNorm2d", "Dropout"} <= {type(module).__name__ for module in slim.modules()}
    before = slim.get_submodule("bn").running_mean.clone()
    slim.train()(x)
    assert (slim.get_submodule("bn").running_mean != before).all()


def test_what_training_does_more_is_said() -> None:
    with pytest.warns(nestify.NestifyWarning, match=r"does in training only: add"):
        nest(Training(), torch.randn(4, 3, 8, 8))


def test_errors_name_the_module() -> None:
    class Reads(nn.Module):
        def forward(self, x: Any) -> Any:
            return x[x > 0]

    net, inner = nn.Sequential(), Reads()
    net.add_module("first", nn.Sequential(nn.Linear(4, 4), inner))
    net.add_module("second", nn.Sequential(inner))
    with pytest.raises(nestify.CaptureError, match="depends on the data"):
        nest(net, torch.randn(3, 4))
