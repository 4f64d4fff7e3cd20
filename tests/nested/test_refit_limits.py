"""``extract(refit=True)`` of awkward networks and data, and its limits."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import nestify
from nestify.errors import NestifyWarning, UsageError
from nestify.nested import refit as refitting
from nestify.nested.batch_norm import norm_calls
from nestify.nested.refit_layers import layer_calls
from nestify.runtime.program import Program
from tests.nested.test_refit import batches, distances, drawn, mobile, warmed

# --- awkward networks and data --------------------------------------------------------------------


class Trained(nn.Module):
    """Widths that were trained share running statistics that are nobody's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.second, self.again = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        return self.head(F.relu(self.again(self.second(x))).mean((2, 3)))


def test_what_is_followed_has_statistics_of_these_batches_too() -> None:
    """As nested training leaves them they are those of a mixture of widths."""
    torch.manual_seed(0)
    data, fresh = batches(16, 3, 8, 8, count=8), batches(16, 3, 8, 8, seed=50)
    model = warmed(Trained(), data)
    nested = nestify.transform(model, "fn3-channel", (data[0],))
    with torch.no_grad():
        nested.get_submodule("again").running_mean += 2.0
        nested.get_submodule("again").running_var *= 5.0
    plain, refitted = distances(nested, nested.space.at(0.5), data, fresh)
    assert refitted < 0.8 * plain


class Awkward(nn.Module):
    """A vector as weight, a buffer as weight, a block under autocast, an input that is changed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.vector = nn.Parameter(torch.randn(16))
        self.register_buffer("fixed", torch.randn(16, 16))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x.mul_(0.5)
        x = F.relu(self.b(F.relu(self.a(x))))
        y = F.relu(F.linear(x, self.fixed))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.c(y)
        return F.linear(x, self.vector), y.float()


def test_what_is_no_layer_of_parameters_stays_and_inputs_too() -> None:
    torch.manual_seed(0)
    nested = nestify.transform(Awkward(), "fn3-neuron", (torch.randn(2, 6),))
    subnet, data = nested.space.at(0.5), [torch.randn(9, 6) for _ in range(5)]
    before = [x.clone() for x in data]
    old = nested.extract(subnet).state_dict()
    new = nested.extract(subnet, calibrate=data, refit=True).state_dict()
    assert all(map(torch.equal, before, data))
    assert {key for key in old if not torch.equal(old[key], new[key])} == {"b.weight", "b.bias"}


def test_complex_layers_stay() -> None:
    torch.manual_seed(0)
    layers = (nn.Linear(6, 16, dtype=torch.complex64), nn.Linear(16, 4, dtype=torch.complex64))
    x = torch.randn(8, 6, dtype=torch.complex64)
    nested = nestify.transform(nn.Sequential(*layers), "fn3-neuron{where=all}", (x,))
    old = nested.extract({"0": 8}).state_dict()
    with pytest.warns(NestifyWarning, match=r"leaves every layer as it is: no call has parameters"):
        new = nested.extract({"0": 8}, calibrate=[x, x], refit=True).state_dict()
    assert all(torch.equal(old[key], new[key]) for key in old)


@pytest.mark.parametrize("shape", [(4, 3), (3, 3), (4, 1), (1, 4)])
def test_a_transpose_is_told_from_a_view_that_moves_nothing(shape: tuple[int, int]) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.flipped, self.not_flipped = (
                nn.Parameter(torch.randn(s)) for s in (shape, shape[::-1])
            )

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.flipped.permute(1, 0) + x @ self.not_flipped.permute(0, 1)

    graph = nestify.trace(Net(), torch.randn(2, shape[1]))
    calls = layer_calls(Program(graph), norm_calls(graph)).values()
    told = {tensor.name: tensor.flipped for call in calls for tensor in call.tensors}
    assert told == {"flipped": True, "not_flipped": False}


@pytest.mark.parametrize("form", ["scaled", "full", "two readers"])
def test_products_that_are_no_plain_layer_stay(form: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.weight = nn.Linear(5, 8), nn.Parameter(torch.randn(3, 8))
            self.bias = nn.Parameter(torch.randn(40, 3) if form == "full" else torch.randn(3))

        def forward(self, x: Tensor) -> Tensor:
            y, w = F.relu(self.first(x)), self.weight.T
            if form == "two readers":
                return y @ w + y.square() @ w
            return torch.addmm(self.bias, y, w, beta=0.5 if form == "scaled" else 1)

    torch.manual_seed(0)
    data = [x.float() for x in batches(40, 5)]
    nested = nestify.transform(Net(), "fn3-neuron", (data[0],))
    old = nested.extract({"first": 4}).state_dict()
    new = nested.extract({"first": 4}, calibrate=data, refit=True).state_dict()
    assert all(torch.equal(old[key], new[key]) for key in old)


class Merged(nn.Module):
    """The batch and the channels are one dim for a while, where a layer and a norm run."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.first, self.over = nn.Conv1d(3, 12, 3, padding=1), nn.Linear(10, 10)
        self.norm, self.last = norm, nn.Conv1d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        y = self.norm(self.over(x.flatten(0, 1)))
        return self.last(F.relu(y).reshape(x.shape))


@pytest.mark.parametrize("norm", [nn.Identity(), nn.BatchNorm1d(10)])
@pytest.mark.parametrize("size", [3, 8, 20])
def test_batches_of_any_size_where_the_batch_is_a_part_of_a_dim(norm: nn.Module, size: int) -> None:
    torch.manual_seed(0)
    data, fresh = batches(size, 3, 10, count=8), batches(size, 3, 10, seed=50)
    model = warmed(Merged(copy.deepcopy(norm)), data)
    nested = nestify.transform(model, "fn3-channel{where=all}", (drawn(8, 3, 10, seed=0),))
    plain, refitted = distances(nested, nested.space.at(0.5), data, fresh)
    assert refitted < 0.9 * plain


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_values_that_are_not_finite_are_named(value: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)).double()
    nested = nestify.transform(model, "fn3-neuron", (drawn(2, 6, seed=0),))
    data = batches(8, 6)
    data[1][0, 0] = value
    with pytest.warns(NestifyWarning, match=r"leaves .*2\.weight as .*: values .* not finite"):
        slim = nested.extract({"0": 8}, calibrate=data, refit=True)
    assert torch.equal(slim.get_submodule("2").weight, nested.get_submodule("2").weight[:, :8])


@pytest.mark.parametrize("size", [1.0, 3000.0])
def test_large_values_in_half_precision(size: float) -> None:
    torch.manual_seed(0)
    values = [torch.randn(4000, 64).half() * size for _ in range(2)]
    assert refitting._same(values[0], values[0].clone())
    assert not refitting._same(*values)


@pytest.mark.parametrize("most", [8, 20, 200])
def test_many_groups_are_fitted_some_at_a_time(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """As all at once, but that each chooses its ridge: the reads of a filter are 9 here."""
    nested, data = mobile("fn3-path", groups=12), batches(16, 3, 10, 10, count=8)
    monkeypatch.setattr(refitting, "_RIDGES", (0.01,))
    subnet = nested.space.at(0.5)
    whole = nested.extract(subnet, calibrate=data, refit=True).state_dict()
    monkeypatch.setattr(refitting, "_AT_ONCE", most)
    some = nested.extract(subnet, calibrate=data, refit=True).state_dict()
    for key in whole:
        torch.testing.assert_close(some[key], whole[key])


@settings(max_examples=20)
@given(
    st.sampled_from([0.0, 1.0, 1e6, -1e-6]),
    st.sampled_from([0.0, 1e-3, 1.0]),
    st.integers(1, 5),
    st.integers(0, 99),
)
def test_constant_and_far_off_inputs(mean: float, spread: float, count: int, seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)).double()
    nested = nestify.transform(model, "fn3-neuron", (drawn(2, 6, seed=0),))
    data = [mean + spread * x for x in batches(8, 6, count=count)]
    plain, refitted = distances(nested, {"0": 8}, data, data)
    assert refitted <= 1.01 * plain


# --- limits ---------------------------------------------------------------------------------------


class Counts(nn.Module):
    """What a batch leaves behind in eval, the next one sees."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 4)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_(1)
        return self.b(F.relu(self.a(x * self.seen)))


def test_a_network_that_remembers_its_batches_is_refused() -> None:
    nested = nestify.transform(Counts(), "fn3-neuron", (torch.randn(2, 6),))
    with pytest.raises(UsageError, match=r"writes into seen in eval"):
        nested.extract({"a": 8}, calibrate=[torch.randn(9, 6)], refit=True)


def test_norms_that_switch_must_know_the_whole_network() -> None:
    nested, data = mobile(), batches(8, 3, 10, 10)
    nested.switch_norms([0.75, 0.5])
    with pytest.raises(UsageError, match=r"name it, 1.0, among the subnets of switch_norms"):
        nested.extract(nested.space.at(0.5), calibrate=data, refit=True)
    nested = mobile()
    nested.switch_norms([1.0, 0.5])
    plain, refitted = distances(nested, nested.space.at(0.5), data, batches(8, 3, 10, 10, seed=50))
    assert refitted < 0.9 * plain


@pytest.mark.parametrize(
    ("calibrate", "message"),
    [
        (None, r"refit=True fits weights to batches of inputs: pass them as calibrate="),
        ([], r"pass at least one batch of inputs"),
        ([((drawn(2, 6, seed=0), drawn(2, 6, seed=0)), 1)], r"structure of the example inputs"),
    ],
)
def test_data_that_cannot_be_used_are_refused(calibrate: Any, message: str) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).double()
    nested = nestify.transform(model, "fn3-neuron", (drawn(2, 6, seed=0),))
    with pytest.raises(UsageError, match=message):
        nested.extract(
            {"0": 4}, calibrate=[(calibrate[0],)] if calibrate else calibrate, refit=True
        )


def test_a_layer_that_is_too_wide_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refitting, "MOST_INPUTS", 10)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)).double()
    nested = nestify.transform(model, "fn3-neuron", (drawn(2, 6, seed=0),))
    with pytest.warns(NestifyWarning, match=r"leaves 2\.weight as it is") as caught:
        wide = nested.extract({"0": 12}, calibrate=batches(8, 6), refit=True)
    assert caught[0].filename == __file__
    assert torch.equal(wide.get_submodule("2").weight, nested.get_submodule("2").weight[:, :12])
