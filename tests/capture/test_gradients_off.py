"""Blocks without gradients: wherever they stand, and whatever they write, gradients are the
model's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

import nestify


def inside(h: torch.Tensor, average: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", enabled=False):
        with torch.no_grad():
            mean = h.mean(1, keepdim=True)
            with torch.enable_grad():
                kept = h.cos()
        return h * mean + kept


def beside(h: torch.Tensor, average: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", enabled=False), torch.inference_mode():
        average.mul_(0.9).add_(h.mean(0))
    return h / (1 + average)


def around(h: torch.Tensor, average: torch.Tensor) -> torch.Tensor:
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        mean = h.mean(1, keepdim=True)
    return h * mean


def counted(h: torch.Tensor, average: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        average.mul_(0.9).add_(h.mean(0))
    return h / (1 + average)


def clamped(h: torch.Tensor, average: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        h.clamp_(min=0)
    return h


def written(h: torch.Tensor, average: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        h[:, :4].mul_(2)
        same = h
    return h * same


def split(h: torch.Tensor, average: torch.Tensor) -> torch.Tensor:
    left, right = h.chunk(2, 1)
    with torch.no_grad():
        a, b = (h * 2).chunk(2, 1)
        total = left + a
    return torch.cat([left * total, right * b], 1)


class Hidden(nn.Module):
    def __init__(self, act: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.first, self.act, self.last = nn.Linear(6, 8), act, nn.Linear(8, 3)
        self.register_buffer("average", torch.ones(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.act(self.first(x), self.get_buffer("average")))


class Clipped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.last.weight.clamp_(-0.1, 0.1)
        return self.last(torch.relu(self.first(x)))


MODELS = [
    *(Hidden(act) for act in (inside, beside, around, counted, clamped, written, split)),
    Clipped(),
]


def two_steps(net: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Outputs, gradients and tensors of two steps; the second reads what the first wrote."""
    found: dict[str, torch.Tensor] = {}
    for step, batch in enumerate((x, x.cos())):
        found[f"output {step}"] = out = net(batch)
        out.square().sum().backward()
    found |= {f"grad of {n}": p.grad for n, p in net.named_parameters() if p.grad is not None}
    return found | dict(net.named_buffers()) | dict(net.named_parameters())


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.act.__name__ if hasattr(m, "act") else "")
@pytest.mark.parametrize("callers", [True, False], ids=["on", "off"])
def test_gradients_are_those_of_the_model(model: nn.Module, callers: bool) -> None:
    """Whether gradients are on where the model is captured makes no difference."""
    torch.manual_seed(0)
    model, x = copy.deepcopy(model).double(), torch.randn(4, 6).double()
    with torch.set_grad_enabled(callers):
        nested = nestify.transform(model, "fn3-neuron{where=all}", (x,)).train()
        slim = nested.extract(nested.space.largest()).train()
    with nested.activate(nested.space.largest()):
        found = two_steps(nested, x)
    del found["_draws"]
    expected = two_steps(model, x)
    torch.testing.assert_close(found, expected)
    extracted = two_steps(slim, x)
    torch.testing.assert_close(extracted, {key: expected[key] for key in extracted})
    assert not any(buffer.requires_grad for buffer in nested.buffers())
    copy.deepcopy(nested)
