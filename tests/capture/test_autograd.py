"""Gradients of a nested model are those of the original, or a warning says which are not."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import nestify
from nestify import NestifyWarning
from nestify.errors import CaptureError


class Round(torch.autograd.Function):
    """Rounds, and hands the gradient straight through."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return grads[0]


class Rounded(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Round.apply(8 * x) / 8


class WithoutGradients(torch.autograd.Function):
    """The square, which switches gradients off while they are off."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        with torch.no_grad():
            return x * x

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return 2 * ctx.saved_tensors[0] * grads[0]


class Squared(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return WithoutGradients.apply(x)


class Detached(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + ((8 * x).round() / 8 - x).detach()


class Checkpointed(nn.Module):
    """Runs what cuts gradients off for a part, in a checkpoint of torch's."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant

    def inside(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            scale = x.abs().mean()
        return torch.relu(x) * scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: Any = checkpoint(self.inside, x, use_reentrant=self.reentrant)
        return found


class Data(nn.Module):
    """The straight-through gradient as older code writes it; then a write past autograd."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + ((8 * x).round() / 8 - x).data
        x = 3 * x
        x.data.clamp_(-1, 1)
        return x


class NewData(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x.data = x.clamp(-1, 1)
        return x


class Inference(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            scale = x.abs().mean()
        return x * scale.clone()


class Clipped(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * 2
        x.register_hook(lambda gradient: gradient.clamp(-1, 1))
        return x


def hooked_module() -> nn.Module:
    net = nn.ReLU()
    net.register_full_backward_hook(lambda module, inner, outer: (inner[0].clamp(-1, 1),))
    return net


def hooked_weight() -> nn.Module:
    net = nn.Linear(8, 8)
    net.weight.register_hook(lambda gradient: gradient.clamp(-1, 1))
    return net


def network(block: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), block, nn.ReLU(), nn.Linear(8, 2))


def nested(block: nn.Module) -> nestify.NestedModel:
    return nestify.transform(network(block), "fn3-neuron{where=all}", (torch.randn(2, 4),))


def results(net: nn.Module, x: torch.Tensor) -> list[torch.Tensor | None]:
    y = net(x)
    y.square().sum().backward()
    return [y, *(parameter.grad for parameter in net.parameters())]


def check_gradients(model: nestify.NestedModel, block: nn.Module) -> None:
    x, net = 9 * torch.randn(3, 4), network(block)
    net.load_state_dict(dict(model.named_parameters()))
    with model.activate(model.space.largest()):
        torch.testing.assert_close(results(model, x), results(net, x))


def test_a_backward_that_the_graph_lacks_is_named_with_its_line() -> None:
    before = vars(torch.autograd.Function)["apply"], dict(vars(torch.inference_mode))
    with pytest.warns(
        NestifyWarning, match=r"module '1' \(.*test_autograd.py:\d+\) runs Round, an"
    ):
        nested(Rounded())
    assert (vars(torch.autograd.Function)["apply"], dict(vars(torch.inference_mode))) == before


@pytest.mark.parametrize(
    "block",
    [Detached(), Data(), Inference(), Checkpointed(reentrant=True), Checkpointed(reentrant=False)],
)
def test_gradients_that_are_kept_are_no_reason_to_warn(block: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", NestifyWarning)
        model = nested(block)
    check_gradients(model, block)


@pytest.mark.parametrize(
    ("block", "said"),
    [
        (Clipped(), r"module '1' \(.*:\d+\) registers a hook on a gradient: the nested model's"),
        (hooked_module(), "module '1' has backward hooks: the nested model's gradients"),
        (hooked_weight(), "parameter '1.weight' has hooks on its gradient"),
    ],
)
def test_hooks_on_gradients_are_named(block: nn.Module, said: str) -> None:
    with pytest.warns(NestifyWarning, match=said):
        nested(block)


def test_what_leaves_no_trace_is_refused_with_its_line() -> None:
    message = r"in module '1' \(.*test_autograd.py:\d+\): .*a new .data leaves no trace"
    with pytest.raises(CaptureError, match=message):
        nested(NewData())
    assert "data" not in vars(torch.Tensor)


def test_what_follows_a_function_without_gradients_has_some() -> None:
    with pytest.warns(NestifyWarning, match="runs WithoutGradients"):
        model = nested(Squared())
    check_gradients(model, Squared())
