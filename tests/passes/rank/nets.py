"""Networks whose positions are ranked, and the data that they are ranked by."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import nestify
from nestify.graph.graph import Graph
from tests.laws.generator import ModelSpec, build, example_inputs
from tests.laws.test_models import doubled

WAYS = ("magnitude", "activation", "taylor", "hessian")
HIDDEN = 6


class Net(nn.Module):
    """A convolution, a norm and an activation in front of a convolution, pooled into classes."""

    def __init__(self, outputs: int = 4) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, HIDDEN, 3), nn.BatchNorm2d(HIDDEN)
        self.second, self.head = nn.Conv2d(HIDDEN, 8, 3), nn.Linear(8, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.gelu(self.second(F.relu(self.norm(self.first(x)))))
        return self.head(x.mean((2, 3)))


def net(outputs: int = 4, seed: int = 0) -> Net:
    torch.manual_seed(seed)
    model = Net(outputs).double().eval()
    with torch.no_grad():
        for name in ("norm.weight", "norm.running_var"):
            model.state_dict()[name].uniform_(0.5, 1.5)
    return model


def images(count: int = 2, seed: int = 1) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(5, 3, 7, 7, generator=draw).double() for _ in range(count)]


def labelled(count: int = 2) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(x, torch.arange(5) % 4) for x in images(count)]


def made(spec: ModelSpec, seed: int) -> tuple[nn.Module, list[Any]]:
    batches = [doubled(example_inputs(spec, n, seed + n)) for n in (2, 3)]
    return build(spec, seed).double().eval(), batches


def trace(model: nn.Module, example: tuple[Any, ...]) -> Graph:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nestify.NestifyWarning)
        return nestify.trace(model, example)


def graph_of(model: nn.Module) -> Graph:
    return nestify.trace(model, (images(1)[0],))
