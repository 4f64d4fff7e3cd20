"""``nested.calibrate``: what re-estimating the extracted network gives, without extracting it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nestify
from nestify.nested.batch_norm import reestimate_batch_norm
from nestify.runtime.batch_statistics import BatchStatistics
from nestify.runtime.prefix_store import storages_of
from tests.runtime.prefix.evaluations import evaluate, neighbours, nest, same
from tests.runtime.prefix.subjects import WITH_NORMS, Batch

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


class Awkward(nn.Module):
    """A norm that runs twice, one that averages all batches, one without scale, a frozen one, one
    that never kept statistics, one that is a mere function.
    """

    mean: Tensor
    var: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3 if i == 0 else 6, 6, 3) for i in range(5))
        self.twice = nn.BatchNorm2d(6, momentum=None)
        self.bare = nn.BatchNorm2d(6, momentum=0.3, affine=False)
        self.forgetful = nn.BatchNorm2d(6, track_running_stats=False)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(6 * 36, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.out = nn.Linear(8, 3)
        self.register_buffer("mean", torch.rand(6))
        self.register_buffer("var", torch.rand(6) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(F.relu(self.convs[0](x)))
        x = F.dropout(self.twice(F.relu(self.convs[1](x))), 0.5, self.training)
        x = F.relu(self.bare(self.convs[2](x)))
        x = F.relu(self.forgetful(self.convs[3](x)))
        x = F.relu(F.batch_norm(self.convs[4](x), self.mean, self.var))
        return self.out(self.head(x))


def awkward(dtype: torch.dtype = torch.float32) -> tuple[nestify.NestedModel, list[Batch]]:
    torch.manual_seed(0)
    batches = [(torch.randn(n, 3, 16, 16, dtype=dtype) * 2 + 1,) for n in (8, 8, 5)]
    model = Awkward().to(dtype)
    return nestify.transform(model, "fn3-channel{where=all}+fn3-neuron", batches[0]), batches


def model_of(name: str, dtype: torch.dtype) -> tuple[nestify.NestedModel, list[Batch]]:
    if name == "awkward":
        return awkward(dtype)
    nested, batches = nest(name)
    return nested.to(dtype), [tuple(x.to(dtype) for x in batch) for batch in batches]


def statistics(slim: nn.Module) -> dict[str, Tensor]:
    """Means and variances by name; the counts of batches are of no use in eval."""
    return {n: b.clone() for n, b in slim.named_buffers() if not n.endswith("batches_tracked")}


def close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Equal but for the order of sums."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        limit = TOLERANCE[value.dtype]
        torch.testing.assert_close(found[name], value, rtol=limit, atol=limit)


def check(nested: nestify.NestedModel, subnet: nestify.Subnet, batches: list[Any]) -> set[str]:
    """Compare with the extracted network; returns the names of what calibration changed."""
    slim = nested.extract(subnet, verify=False)
    before = statistics(slim)
    reestimate_batch_norm(slim, batches)
    nested.calibrate(subnet, iter(batches))
    found = statistics(nested.extract(subnet, verify=False))
    close(found, statistics(slim))
    with nested.activate(subnet), torch.no_grad():
        modes = [module.training for module in nested.modules()]
        nested.eval()
        x = batches[0][0]
        torch.testing.assert_close(nested(x), slim(x), rtol=1e-4, atol=1e-4)
        for module, mode in zip(nested.modules(), modes, strict=True):
            module.training = mode
    return {name for name, value in before.items() if not torch.equal(value, found[name])}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", [*WITH_NORMS, "awkward"])
def test_statistics_are_those_of_the_extracted_network(name: str, dtype: torch.dtype) -> None:
    nested, batches = model_of(name, dtype)
    before = {name: buffer.clone() for name, buffer in nested.named_buffers()}
    for subnet in neighbours(nested.space, 5):
        nested.train().eval()  # forget what was found for a subnet that comes twice
        slim = nested.extract(subnet, verify=False)
        norms = {n for n, m in slim.named_modules() if isinstance(m, NORMS)}
        changed = check(nested, subnet, batches)
        kinds = ("running_mean", "running_var")
        expected = {f"{norm}.{kind}" for norm in norms for kind in kinds}
        assert changed == expected - {"forgetful.running_mean", "forgetful.running_var"}
        assert changed
    assert all(torch.equal(buffer, before[name]) for name, buffer in nested.named_buffers())


class InTwoPrecisions(nn.Module):
    """Its middle is in double precision, with the norm there."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).double()
        self.third = nn.Sequential(nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.first(x).double()).float())


def test_norms_of_two_precisions() -> None:
    torch.manual_seed(0)
    batches = [(torch.randn(n, 3, 9, 9) * 2 + 1,) for n in (6, 6, 4)]
    nested = nestify.transform(InTwoPrecisions(), "fn3-channel{where=all}", batches[0]).eval()
    for subnet in neighbours(nested.space, 4):
        assert len(check(nested, subnet, batches)) == 6
    kinds = [b.dtype for n, b in nested.named_buffers() if n.endswith("running_var")]
    assert kinds == [torch.float32, torch.float64, torch.float32]


def test_dropped_norms_have_no_statistics_to_estimate() -> None:
    nested, batches = nest("residual")
    (unit,) = (unit.name for unit in nested.space.units if unit.kind == "layer")
    full = check(nested, nested.space.largest(), batches)
    short = check(nested, nestify.Subnet(dict(nested.space.largest()) | {unit: 1}), batches)
    assert short < full


@pytest.mark.filterwarnings("ignore:norms switch among")
@pytest.mark.parametrize("rule", ["none", "expected", "conditional"])
def test_switchable_norms_and_scaled_weights(rule: str) -> None:
    nested, batches = nest("mobilenet")
    norms = nested.switch_norms([0.5, 1.0])
    with torch.no_grad():
        for parameter in norms.parameters():
            parameter.add_(torch.rand_like(parameter))
    nested.scaling = rule
    for share in (0.5, 0.7, 1.0):
        subnet = nested.space.at(share)
        assert check(nested, subnet, batches)
        assert check(nested, subnet, batches[1:])  # anew, not on top of what was found before


def test_calibration_leaves_modes_and_the_random_state_alone() -> None:
    nested, batches = awkward()
    nested.train()
    nested.get_submodule("bare").eval()
    modes = [module.training for module in nested.modules()]
    state = torch.get_rng_state()
    check(nested, nested.space.at(0.5), batches)
    assert [module.training for module in nested.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)


def test_batches_with_labels() -> None:
    nested, batches = awkward()
    check(nested, nested.space.at(0.5), [(x, torch.zeros(len(x))) for (x,) in batches])


def test_wrong_batches() -> None:
    nested, ((x,), *_) = awkward()
    subnet = nested.space.largest()
    with pytest.raises(nestify.UsageError, match="at least one batch"):
        nested.calibrate(subnet, [])
    with pytest.raises(nestify.UsageError, match=r"'head.2' .*test_calibrate.*larger batches"):
        nested.calibrate(subnet, [x, x[:1]])
    with pytest.raises(nestify.UsageError, match="structure of the example inputs"):
        nested.calibrate(subnet, [((x, x), x)])
    with pytest.raises(nestify.UsageError, match="nothing"):
        nested.calibrate({"nothing": 3}, [x])


# --- with reuse -----------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, 300_000, 1 << 30])
@pytest.mark.parametrize("name", [*WITH_NORMS, "awkward"])
def test_reuse_changes_no_bit_of_calibration(name: str, limit: int) -> None:
    """Calibrate and score, as a search does; some subnets twice, on other data."""
    nested, batches = model_of(name, torch.float32)
    nested.eval()
    plan = [(s, batches[i % 2 :]) for i, s in enumerate(neighbours(nested.space, 10))]
    plan += [(s, batches[:2]) for s, _ in plan[:3]]

    def walk() -> list[Any]:
        found: list[Any] = []
        for subnet, data in plan:
            with nested.activate(subnet):  # most have no statistics of their own yet
                found.append(evaluate(nested, batches[:1]))
            nested.calibrate(subnet, [tuple(x.clone() for x in batch) for batch in data])
            with nested.activate(subnet):
                found.append(evaluate(nested, batches))
            found.append(statistics(nested.extract(subnet, verify=False)))
        return found

    with torch.no_grad():
        expected = walk()
        nested.train().eval()  # forget what was found
        with nested.reusing(limit_bytes=limit) as reuse:
            found = walk()
    assert same(found, expected)
    assert reuse.hits > 20 or limit < 1 << 30


def test_a_calibrated_child_costs_its_suffix_twice() -> None:
    nested, batches = nest("mobilenet")
    (x,) = batches[0]
    steps = len(nested.graph.calls)
    last = nested.space.units[-1].name
    parent = nested.space.largest()
    child = nestify.Subnet(dict(parent) | {last: 3})
    with torch.no_grad(), nested.reusing() as reuse:
        for subnet in (parent, child):
            nested.calibrate(subnet, [x.clone()])
            with nested.activate(subnet):
                nested(x.clone())
        assert (reuse.hits, reuse.misses) == (2, 2)
        assert reuse.steps_run + reuse.steps_skipped == 4 * steps
        assert reuse.steps_skipped > steps
        plain = nestify.Subnet(dict(parent) | {last: 2})
        with nested.activate(plain):  # on the shared statistics: nothing to start with
            nested(x.clone())
        assert reuse.misses == 3


def test_statistics_hold_no_more_memory_than_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    nested, batches = nest("mobilenet")
    held: list[tuple[int, int]] = []
    close_batch = BatchStatistics.close_batch

    def spy(statistics: BatchStatistics) -> None:
        rows = [rows for _, rows in statistics.batch]
        held.append((sum(storages_of(rows).values()), sum(x.nbytes for x in rows)))
        close_batch(statistics)

    monkeypatch.setattr(BatchStatistics, "close_batch", spy)
    parent = nested.space.at(0.5)
    with torch.no_grad(), nested.reusing() as reuse:
        nested.calibrate(parent, batches[:1])
        for unit in nested.space.units:
            nested.calibrate(nestify.Subnet(dict(parent) | {unit.name: 1}), batches[:1])
    (first, needed), *children = held
    assert first == needed
    assert reuse.hits + 1 >= len(children) > 3
    assert all(size <= first + needed for size, needed in children)  # the parent's, and their own


class ByKeyword(nn.Module):
    """Has an input that must be given by name, and perhaps no other."""

    def __init__(self, alone: bool) -> None:
        super().__init__()
        self.alone = alone
        self.first, self.norm, self.last = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)

    def forward(self, x: Tensor | None = None, *, scale: Tensor) -> Tensor:
        x = scale if x is None else x * scale
        return self.last(self.norm(self.first(x)).relu())


@pytest.mark.parametrize("alone", [False, True])
def test_inputs_by_keyword(alone: bool) -> None:
    torch.manual_seed(0)
    x, scale, labels = torch.randn(9, 4), torch.rand(9, 4), torch.arange(9) % 2
    args, named = () if alone else (x,), {"scale": scale}
    inputs: Any = named if alone else (x, named)
    nested = nestify.transform(ByKeyword(alone), "fn3-neuron", args, example_kwargs=named).eval()
    small = nested.space.smallest()
    slim = nested.extract(small)
    weight = slim.get_submodule("first")
    mean = weight(scale if alone else x * scale).mean(0)
    for batch in (inputs if alone else (inputs,), (inputs, labels)):
        nested.forget_statistics()
        nested.calibrate(small, [batch])
        again = nested.extract(small, [batch])
        for found in (nested.extract(small), again):
            torch.testing.assert_close(found.get_buffer("norm.running_mean"), mean)
        assert nestify.analysis.importance(nested, "activation", calibration=[batch])
    for wrong in (x, (x, named) if not alone else (x, scale), ((x, {"scales": scale}), labels)):
        with pytest.raises(nestify.UsageError, match=r"keyword inputs scale: .*'scale': \.\.\."):
            nested.calibrate(small, [wrong])
        with pytest.raises(nestify.UsageError, match="with keyword inputs scale"):
            nested.extract(small, [wrong])
