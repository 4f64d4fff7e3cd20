"""``extract(refit=True)``: exact where it can be, nearer where not, and nothing else changes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import nestify
from nestify.errors import NestifyWarning
from nestify.support.closeness import relative_distance
from tests.patterns.test_patterns import PATTERNS, nested_of

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def drawn(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def batches(*shape: int, count: int = 4, seed: int = 1) -> list[Tensor]:
    return [drawn(*shape, seed=seed + i) for i in range(count)]


def distances(
    nested: nestify.NestedModel, subnet: Mapping[str, Any], data: list[Tensor], fresh: list[Tensor]
) -> tuple[float, float]:
    """How far the subnet is from the whole network on ``fresh`` data: calibrated, and refitted."""
    nested.eval()
    with torch.no_grad():
        largest = nested.extract(nested.space.largest(), calibrate=data)
        whole = [largest(x) for x in fresh]
        plain = nested.extract(subnet, calibrate=data)
        refitted = nested.extract(subnet, calibrate=data, refit=True)
        plain_one, refitted_one = ([net(x) for x in fresh] for net in (plain, refitted))
    return relative_distance(whole, plain_one), relative_distance(whole, refitted_one)


# --- networks -------------------------------------------------------------------------------------


class Redundant(nn.Module):
    """Hidden channels whose second half is a multiple of the first, read by one layer."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second
        with torch.no_grad():
            for tensor in first.parameters():
                tensor[4:] = 2 * tensor[:4]

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.first(x)))


class Mobile(nn.Module):
    """Inverted residuals with BatchNorm: 1 x 1, depthwise, 1 x 1, and a linear layer."""

    def __init__(self, *, groups: int = 12) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(8, 24, 1, bias=False),
                nn.BatchNorm2d(24),
                nn.ReLU(),
                nn.Conv2d(24, 24, 3, padding=1, groups=groups, bias=False),
                nn.BatchNorm2d(24),
                nn.ReLU(),
                nn.Conv2d(24, 8, 1, bias=False),
                nn.BatchNorm2d(8),
            )
            for _ in range(3)
        )
        self.head = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(F.relu(x).mean((2, 3)))


class Shared(nn.Module):
    """One linear layer and one norm that run twice, another layer tied to the first."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice, self.norm = nn.Linear(5, 12), nn.Linear(12, 12), nn.BatchNorm1d(12)
        self.tied, self.own, self.head = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 3)
        self.tied.weight = self.twice.weight

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.twice(self.first(x))))
        x = F.relu(self.norm(self.twice(x)))
        return self.head(F.relu(self.own(F.relu(self.tied(x)))))


def warmed(model: nn.Module, data: list[Tensor]) -> nn.Module:
    """In double, with BatchNorm statistics of these data."""
    model = model.double().train()
    for x in data:
        model(x)
    return model.eval()


def mobile(recipe: str = "fn3-channel{where=all}", **options: Any) -> nestify.NestedModel:
    torch.manual_seed(0)
    model = warmed(Mobile(**options), batches(16, 3, 10, 10, count=30))
    return nestify.transform(model, recipe, (drawn(2, 3, 10, 10, seed=0),))


# --- exact ----------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(
    st.integers(1, 3),
    st.sampled_from([1, 2]),
    st.sampled_from([1, 2]),
    st.sampled_from([0, 1, "same"]),
    st.booleans(),
)
def test_a_convolution_makes_up_for_channels_that_repeat_others(
    rank: int, stride: int, dilation: int, padding: Any, bias: bool
) -> None:
    torch.manual_seed(0)
    stride = 1 if padding == "same" else stride
    first = CONVS[rank - 1](2, 8, 1, bias=bias)
    second = CONVS[rank - 1](8, 4, 3, stride, padding, dilation, bias=bias)
    model = Redundant(first, second).double()
    shape = (6, 2, *[7] * rank)
    nested = nestify.transform(model, "fn3-channel", (drawn(*shape, seed=0),))
    plain, refitted = distances(nested, {"first": 4}, batches(*shape), batches(*shape, seed=50))
    assert refitted < 0.01 * plain


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("positions", [[0, 5, 2, 7], [4, 1, 6, 3], 4])
def test_a_linear_layer_does_too_from_any_positions_that_say_it_all(
    positions: Any, bias: bool
) -> None:
    torch.manual_seed(0)
    model = Redundant(nn.Linear(5, 8, bias=bias), nn.Linear(8, 3, bias=bias)).double()
    nested = nestify.transform(model, "fn3-neuron", (drawn(2, 5, seed=0),))
    data = batches(40, 5)
    plain, refitted = distances(nested, {"first": positions}, data, batches(40, 5, seed=50))
    assert refitted < 0.01 * plain


class Product(nn.Module):
    """A layer that is written as a product of matrices: its weight lies in it as ``order`` says."""

    def __init__(self, inputs: int, outputs: int, form: Callable[..., Tensor], order: str) -> None:
        super().__init__()
        shape = (inputs, outputs) if order == "io" else (outputs, inputs)
        self.weight, self.form = nn.Parameter(torch.randn(*shape)), form
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.form(x, self.weight, self.bias)


PRODUCTS: dict[str, tuple[str, Callable[..., Tensor]]] = {
    "addmm": ("io", lambda x, w, b: torch.addmm(b, x, w)),
    "mm": ("io", lambda x, w, b: torch.mm(x, w) + b),
    "matmul": ("io", lambda x, w, b: (x[:, None] @ w)[:, 0] + b),
    "T": ("oi", lambda x, w, b: x @ w.T + b),
    "permute": ("oi", lambda x, w, b: torch.addmm(b, x, w.permute(1, 0))),
    "linear": ("io", lambda x, w, b: F.linear(x, w.transpose(0, 1), b)),
    "not flipped": ("io", lambda x, w, b: torch.mm(x, w.permute(0, 1)) + b),
}


@pytest.mark.parametrize("square", [True, False])
@pytest.mark.parametrize("name", PRODUCTS)
def test_so_does_a_layer_that_is_written_as_a_product(name: str, square: bool) -> None:
    torch.manual_seed(0)
    order, form = PRODUCTS[name]
    outputs = 4 if square else 3  # the subnet reads four
    model = Redundant(nn.Linear(5, 8), Product(8, outputs, form, order)).double()
    nested = nestify.transform(model, "fn3-neuron{where=all}", (drawn(2, 5, seed=0),))
    data = batches(40, 5)
    plain, refitted = distances(nested, {"first": 4}, data, batches(40, 5, seed=50))
    assert refitted < 0.01 * plain


@pytest.mark.filterwarnings("ignore:refit=True leaves .* (several calls share|no call has)")
@pytest.mark.parametrize("name", PATTERNS)
def test_nothing_changes_where_nothing_is_cut_and_any_subnet_can_be_refitted(name: str) -> None:
    """The largest one bit for bit; verification compares the others with the nested model."""
    pattern = PATTERNS[name]
    nested = nested_of(pattern)
    data = [pattern.example(size) for size in (5, 4, 5)]
    calibrate = [(x, None) for x in data] if not nested.example_kwargs else None
    if calibrate is None:
        calibrate = [((*x, nested.example_kwargs), None) for x in data]
    before = copy.deepcopy(nested.state_dict())
    largest = nested.space.largest()
    plain = nested.extract(largest).state_dict()
    refitted = nested.extract(largest, calibrate=calibrate, refit=True).state_dict()
    assert plain.keys() == refitted.keys()
    weights = [key for key in plain if not key.endswith(("running_mean", "running_var"))]
    assert all(torch.equal(plain[key], refitted[key]) for key in weights)
    for seed in range(2):
        subnet = nested.space.sample(torch.Generator().manual_seed(seed))
        slim = nested.extract(subnet, calibrate=calibrate, refit=True)
        kinds = {key: (t.dtype, t.shape) for key, t in slim.state_dict().items()}
        there = nested.extract(subnet).state_dict()
        assert kinds == {key: (t.dtype, t.shape) for key, t in there.items()}
    after = nested.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before if key in after)


# --- nearer ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 4, 24])
def test_nearer_to_the_whole_network_on_data_that_were_not_seen(groups: int) -> None:
    nested = mobile(groups=groups)
    data, fresh = batches(16, 3, 10, 10, count=8), batches(16, 3, 10, 10, seed=50)
    plain, refitted = distances(nested, nested.space.at(0.6), data, fresh)
    assert refitted < 0.7 * plain


@pytest.mark.parametrize("recipe", ["fn3-layer", "fn3-path"])
def test_layers_and_paths_that_are_dropped_are_made_up_for(recipe: str) -> None:
    nested = mobile(recipe, groups=4)
    data, fresh = batches(16, 3, 10, 10, count=8), batches(16, 3, 10, 10, seed=50)
    plain, refitted = distances(nested, nested.space.at(0.5), data, fresh)
    assert refitted < 0.9 * plain


def test_heads_that_are_dropped_are_made_up_for() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True).double().eval()
    nested = nestify.transform(model, "fn3-head+fn3-neuron", (drawn(2, 5, 16, seed=0),))
    data = batches(16, 5, 16, count=8)
    plain, refitted = distances(nested, nested.space.at(0.5), data, batches(16, 5, 16, seed=50))
    assert refitted < 0.8 * plain


def test_few_samples_do_no_harm() -> None:
    """A wide layer that sees fewer samples than it has inputs, of which most are noise."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 96), nn.ReLU(), nn.Linear(96, 4)).double()
    nested = nestify.transform(model, "fn3-neuron", (drawn(2, 6, seed=0),))
    fresh = batches(200, 6, seed=50)
    for count in (1, 3):
        with pytest.warns(NestifyWarning, match=r"leaves 2\.weight as it is: calibrate= gives too"):
            plain, refitted = distances(nested, {"0": 64}, batches(count, 6, count=1), fresh)
        assert refitted == plain
    for count in (5, 30, 80):
        plain, refitted = distances(nested, {"0": 64}, batches(count, 6, count=1), fresh)
        assert refitted <= 1.02 * plain, count
    assert refitted < 0.8 * plain


# --- what stays -----------------------------------------------------------------------------------


def test_what_several_calls_read_stays() -> None:
    torch.manual_seed(0)
    data = batches(32, 5)
    model = warmed(Shared(), data)
    nested = nestify.transform(model, "fn3-neuron{where=all}", (data[0],))
    subnet = nested.space.at(0.5)
    plain = nested.extract(subnet)
    with pytest.warns(NestifyWarning, match=r"leaves norm\.running_mean as it is: several calls"):
        refitted = nested.extract(subnet, calibrate=data, refit=True)
    assert refitted.tied.weight is refitted.twice.weight
    old, new = plain.state_dict(), refitted.state_dict()
    changed = {key for key in old if not torch.equal(old[key], new[key])}
    assert changed == {"own.weight", "own.bias", "head.weight", "head.bias"}
    nested.calibrate(subnet, data)
    with pytest.warns(NestifyWarning, match="several calls share these statistics"):
        again = nested.extract(subnet, calibrate=data, refit=True).state_dict()
    assert all(torch.equal(new[key], again[key]) for key in new), "what was done before matters"


def test_the_nested_model_is_left_as_it_was() -> None:
    nested = mobile().train()
    nested.get_submodule("blocks.0").eval()
    subnet, data = nested.space.at(0.5), batches(8, 3, 10, 10)
    before, random = copy.deepcopy(nested.state_dict()), torch.get_rng_state()
    modes = [module.training for module in nested.modules()]
    first, second = (nested.extract(subnet, calibrate=data, refit=True) for _ in range(2))
    assert [module.training for module in nested.modules()] == modes
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(before[key], value) for key, value in nested.state_dict().items())
    assert not nested.is_calibrated(subnet), "statistics are those of other weights"
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_parameters_stay_parameters_and_the_class_can_be_the_original_one() -> None:
    nested = mobile("fn3-channel")
    data = batches(8, 3, 10, 10)
    subnet = nested.space.at(0.5)
    plain = nested.extract(subnet)
    slim = nested.extract(subnet, calibrate=iter(data), refit=True, as_original_class=True)
    assert type(slim) is Mobile
    assert {n for n, _ in slim.named_parameters()} == {n for n, _ in plain.named_parameters()}
    assert all(p.requires_grad for p in slim.parameters())


def test_norms_get_the_statistics_of_what_they_see() -> None:
    nested, data = mobile(), batches(8, 3, 10, 10)
    slim = nested.extract(nested.space.at(0.5), calibrate=data, refit=True)
    seen: list[Tensor] = []
    norm = slim.get_submodule("blocks.2.4")
    norm.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    for x in data:
        slim(x)
    rows = torch.cat(seen).movedim(1, -1).flatten(0, -2)
    torch.testing.assert_close(norm.running_mean, rows.mean(0))
    torch.testing.assert_close(norm.running_var, rows.var(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_is_kept(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 4)).to(dtype)
    nested = nestify.transform(model, "fn3-neuron", (drawn(2, 6, seed=0, dtype=dtype),))
    data = [x.to(dtype) for x in batches(64, 6)]
    plain, refitted = distances(nested, {"0": 20}, data, [x.to(dtype) for x in batches(64, 6)])
    assert refitted < 0.7 * plain
