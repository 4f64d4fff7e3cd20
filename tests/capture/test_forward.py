"""What forward may do, and what it does in training only."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nestify
from nestify.capture.captured import capture
from nestify.errors import NestifyWarning
from tests.capture.serving import assert_equal, assert_serves, nest

# --- what forward may do --------------------------------------------------------------------------


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            h = F.relu(self.a(x))
            scale = h.norm(dim=0)
        with torch.autocast("cpu", enabled=False):
            y = self.b(F.relu(self.a(x)) / (1 + scale.detach().mean()))
        return y + h.sum(-1, keepdim=True)


def test_no_grad_and_disabled_autocast_blocks() -> None:
    model = Blocks()
    nested = assert_serves(model, torch.randn(2, 6))
    x = torch.randn(2, 6)
    for net in (model, nested):
        net(x).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, nested.get_parameter(name).grad)


class Counter(nn.Module):
    """Buffers that forward writes, by assignment and in place."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("average", torch.zeros(8))
        self.register_buffer("last", torch.zeros(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        h = F.relu(self.a(x))
        self.average = 0.9 * self.average + 0.1 * h.detach().mean(0)
        self.last.copy_(h.detach().amax(0))
        return self.b(h - self.average) * self.calls


def test_buffers_that_forward_writes() -> None:
    model = Counter().eval()
    nested = nest(model, torch.randn(2, 6)).eval()
    slim = nested.extract(nested.space.largest())
    assert int(model.calls) == 0
    for net in (nested, slim):
        net.load_state_dict(model.state_dict())
    for seed in range(3):
        x = torch.randn(2, 6, generator=torch.Generator().manual_seed(seed))
        out = model(x)
        for net in (nested, slim):
            assert_equal(out, net(x))
            assert_equal(model.state_dict(), net.state_dict())
    with nested.activate(nested.space.at(0.5)):
        nested(torch.zeros(2, 6))
    assert int(nested.calls) == 4
    assert torch.equal(nested.last[4:], model.last[4:])
    assert not torch.equal(nested.last[:4], model.last[:4])


class InPlace(nn.Module):
    """In-place ops whose result is unused, on residual streams and on slices."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 8)
        self.shift = nn.Parameter(torch.randn(8))
        self.out = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        y = self.b(F.gelu(x))
        x = F.relu_(x + 0) * 1
        x.add_(y)
        x[:, :4].mul_(2.0)
        x[:, 1:3] = 1.0
        w = self.shift * 1
        w[:4].add_(1.0)
        x += w
        return self.out(x)


def test_in_place_ops_are_kept_and_train() -> None:
    model = InPlace()
    nested = assert_serves(model, torch.randn(2, 6))
    model.train()
    nested.train()
    x = torch.randn(4, 6)
    nested.activate(nested.space.largest())
    for net in (model, nested):
        net(x).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, nested.get_parameter(name).grad)
    before = {name: p.clone() for name, p in nested.named_parameters()}
    nested.activate(None)
    for _ in range(5):
        nested(x).square().sum().backward()
    assert_equal(before, dict(nested.named_parameters()))


class Constants(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)
        self.plain = torch.arange(4.0)  # a tensor that is no buffer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(F.relu(self.a(x * torch.tensor([1.0, 2, 3, 4, 5, 6])))) + self.plain


def test_lifted_constants_are_no_state() -> None:
    model = Constants()
    nested = assert_serves(model, torch.randn(2, 6))
    assert list(nested.state_dict()) == list(model.state_dict())
    assert assert_serves(copy.deepcopy(model).double(), torch.randn(2, 6).double())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_precisions(dtype: torch.dtype) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    nested = nest(net.to(dtype).eval(), torch.randn(2, 3, 8, 8, dtype=dtype))
    slim = nested.extract(nested.space.at(0.5))
    assert {t.dtype for t in slim.parameters()} == {dtype}
    x = torch.randn(3, 3, 8, 8, dtype=dtype)
    assert_equal(net(x), nested.eval()(x))


def test_channels_last_stays() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    net = net.to(memory_format=torch.channels_last)
    nested = nest(net, torch.randn(2, 3, 8, 8))
    slim = nested.extract(nested.space.at(0.5))
    for tree in (nested, slim):
        weight = tree.get_parameter("2.weight")
        assert weight.is_contiguous(memory_format=torch.channels_last)
    assert_equal(nested.eval()(torch.ones(2, 3, 8, 8)), net(torch.ones(2, 3, 8, 8)))


# --- training only --------------------------------------------------------------------------------


class Auxiliary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.aux = nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> Any:
        h = F.relu(self.a(x))
        if self.training:
            return self.b(h), self.aux(h)
        return self.b(h)


def test_training_only_branches_are_reported() -> None:
    with (
        pytest.warns(NestifyWarning, match=r"'aux' \(.*test_forward.py:\d+\) does in training"),
        pytest.warns(NestifyWarning, match=r"returns \(tensor, tensor\) in training"),
    ):
        nested = nest(Auxiliary(), torch.randn(2, 6))
    assert len(nested.graph.capture.notes) == 2
    assert list(nested.state_dict()) == list(Auxiliary().state_dict())


class RandomBranch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.relu(self.a(x))
        if self.training and torch.rand(()) < 0.5:
            return self.b(h) * 2
        return self.b(F.dropout(h, 0.5, self.training))


def test_a_training_branch_that_cannot_be_traced_is_reported() -> None:
    with pytest.warns(NestifyWarning, match="in training mode.*test_forward.py"):
        captured = capture(RandomBranch(), (torch.randn(2, 6),))
    assert captured.mode_args == {("dropout", "train"): True}


class Straight(nn.Module):
    """A gradient that the forward does not have, written with detach."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.gelu(self.a(x))
        return self.b(h + (torch.sign(h) - h).detach())


def test_a_straight_through_gradient_is_kept() -> None:
    torch.manual_seed(0)
    model, x = Straight(), torch.randn(2, 6)
    nested = nestify.transform(model, "fn3-neuron{where=all}", (x,)).train()
    model(x).sum().backward()
    with nested.activate(nested.space.largest()):
        nested(x).sum().backward()
    expected = model.a.weight.grad
    assert expected is not None and expected.abs().sum() > 0
    torch.testing.assert_close(nested.get_parameter("a.weight").grad, expected)


def test_no_second_trace_without_need(monkeypatch: pytest.MonkeyPatch) -> None:
    traces: list[int] = []
    export = torch.export.export

    def counted(*args: Any, **kwargs: Any) -> Any:
        traces.append(1)
        return export(*args, **kwargs)

    monkeypatch.setattr(torch.export, "export", counted)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.1), nn.Linear(8, 4))
    captured = capture(net, (torch.randn(2, 6),))
    assert len(traces) == 1
    assert captured.mode_args == {("batch_norm", "training"): True, ("dropout", "train"): True}
