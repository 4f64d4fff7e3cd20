"""Search on a network that is only formulas: what is visited, what is found, what is refused."""

from __future__ import annotations

import inspect
import itertools
import math
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import nestify
from nestify import targets
from nestify.errors import CaptureError, InfeasibleError, UsageError
from nestify.explore import METHODS, search
from nestify.explore.arguments import ARGUMENTS
from nestify.explore.moves import between, nearest, shrunk
from nestify.explore.plan import Plan
from nestify.nested.fingerprint import fingerprint
from nestify.space import SearchSpace, Unit
from nestify.targets import Target
from tests.fakes import FakeNested, chain


@pytest.fixture(autouse=True)
def quick_target(monkeypatch: pytest.MonkeyPatch) -> None:
    """A target ``sim`` whose latency is the number of models it has measured."""
    count = itertools.count(1)
    sim = Target("sim", "counts", 1, lambda model, args, kwargs: float(next(count)))
    monkeypatch.setitem(targets.TARGETS, "sim", "tests.fakes:SIM")
    monkeypatch.setattr("tests.fakes.SIM", sim, raising=False)


def evaluate(model: nn.Module) -> float:
    return cast(FakeNested, model).score()


def run(nested: FakeNested, **options: Any) -> Plan:
    options = {"evaluate": evaluate, "target": "sim"} | options
    return search(cast(Any, nested), **options)


# steps ------------------------------------------------------------------------------------------

UNITS = st.builds(
    lambda size, low, step: Unit("u", "channel", size, min(size, low), step),
    st.integers(1, 300),
    st.integers(1, 20),
    st.integers(1, 16),
)


@given(UNITS, st.floats(0, 400))
def test_nearest_is_nearest(unit: Unit, wanted: float) -> None:
    found = nearest(unit.choices, wanted)
    assert found in unit.choices
    assert abs(found - wanted) == min(abs(choice - wanted) for choice in unit.choices)


@given(UNITS)
def test_steps_go_down_to_the_minimum(unit: Unit) -> None:
    size, sizes = unit.size, [unit.size]
    while shrunk(unit, size) < size:
        size = shrunk(unit, size)
        sizes.append(size)
    assert set(sizes) <= set(unit.choices)
    assert size == unit.minimum
    assert len(sizes) <= 12 or unit.size < 16, "a step is about an eighth"


@given(st.lists(UNITS, min_size=1, max_size=4), st.floats(0, 1), st.floats(0, 1))
def test_shares_are_legal_and_monotone(units: list[Unit], a: float, b: float) -> None:
    named = [Unit(f"u{i}", u.kind, u.size, u.minimum, u.step) for i, u in enumerate(units)]
    space = SearchSpace(tuple(named))
    low, high = min(a, b), max(a, b)
    largest, smallest = space.largest(), space.smallest()
    small, big = (between(space, smallest, largest, share) for share in (low, high))
    space.validate(small)
    assert all(small[u.name] <= big[u.name] for u in named)
    assert between(space, smallest, largest, 1) == largest
    assert between(space, smallest, largest, 0) == smallest


# searching --------------------------------------------------------------------------------------


def test_what_a_bound_on_macs_rules_out_is_not_scored() -> None:
    """But for the largest subnet; fn3 spends its evaluations below the bound."""
    nested = chain(9)
    bound = 0.4 * nested.estimate([nested.space.largest()]).macs[0]
    plan = run(nested, max_evaluations=40, constraints={"macs": bound})
    above = [point.subnet for point in plan.points if point.cost.macs > bound]
    assert above == [nested.space.largest()]
    assert len(plan.points) > 35


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("budget", [3, 5, 17, 64])
@pytest.mark.parametrize("bounds", [{}, {"macs": 20_000}])
def test_a_plan_holds_both_ends_and_keeps_to_its_budget(
    method: str, budget: int, bounds: dict[str, float]
) -> None:
    nested = chain(9)
    calls: list[float] = []

    def counted(model: nn.Module) -> float:
        calls.append(evaluate(model))
        return calls[-1]

    plan = run(nested, evaluate=counted, method=method, max_evaluations=budget, constraints=bounds)
    subnets = [point.subnet for point in plan.points]
    assert len(calls) == len(subnets) == len(set(subnets)) <= budget
    assert subnets[0] == nested.space.largest()
    assert nested.space.smallest() in subnets
    for subnet in subnets:
        nested.space.validate(subnet)
    assert nested.active == nested.space.largest(), "the nested model is as it was"
    assert nested.training
    if bounds:
        assert plan.best(**bounds).cost.macs <= 20_000


@pytest.mark.parametrize("method", METHODS)
def test_scores_and_costs_are_those_of_their_subnets(method: str) -> None:
    nested = chain(4, u1=0.9)
    for point in run(nested, method=method, max_evaluations=20).points:
        with nested.activate(point.subnet):
            assert point.score == nested.score()
        assert point.cost.macs == nested.estimate([point.subnet]).row(0).macs


def test_searches_repeat_themselves() -> None:
    for method in METHODS:
        first, second = (run(chain(5), method=method, seed=7).points for _ in range(2))
        assert [p.subnet for p in first] == [p.subnet for p in second]


def test_random_depends_on_the_seed() -> None:
    first, second = (run(chain(5), method="random", seed=seed).points for seed in (0, 1))
    assert [p.subnet for p in first] != [p.subnet for p in second]


@pytest.mark.parametrize("budget", [32, 64, 200])
def test_greedy_spares_the_units_that_matter(budget: int) -> None:
    """Two units carry the score: greedy must beat an even cut at every cost."""
    important = {"u2": 2.0, "u7": 2.0}
    greedy = run(chain(12, **important), max_evaluations=budget)
    uniform = run(chain(12, **important), method="uniform", max_evaluations=budget)
    full = uniform.points[0].cost.macs
    for share in (0.25, 0.5, 0.75):
        assert greedy.best(macs=share * full).score > uniform.best(macs=share * full).score + 0.02


def test_greedy_spreads_over_the_whole_range() -> None:
    plan = run(chain(30))
    macs = [p.cost.macs for p in plan.pareto_front("sim", cost="macs")]
    low, high = math.sqrt(macs[0]), math.sqrt(macs[-1])
    roots = [(math.sqrt(m) - low) / (high - low) for m in macs]
    assert max(b - a for a, b in itertools.pairwise(roots)) < 0.25


def test_many_units_are_bundled() -> None:
    plan = run(chain(300), max_evaluations=40)
    assert len(plan.points) <= 40
    assert len(plan.pareto_front("sim", cost="macs")) >= 5


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("share", [0.3, 0.62, 0.9])
def test_a_point_stands_just_inside_a_constraint(method: str, share: float) -> None:
    nested = chain(6, size=64, step=1)
    bound = share * nested.estimate([nested.space.largest()]).row(0).macs
    plan = run(nested, method=method, constraints={"macs": bound}, max_evaluations=24)
    closest = max(p.cost.macs for p in plan.points if p.cost.macs <= bound)
    assert closest > 0.95 * bound


def test_a_point_stands_inside_several_constraints() -> None:
    nested = chain(6, size=64, step=1)
    bounds = {"macs": 15_000.0, "params": 250.0}
    best = run(nested, constraints=bounds).best(**bounds)
    assert best.cost.macs <= 15_000
    assert best.cost.params <= 250


def test_constraints_that_the_full_model_meets_change_nothing() -> None:
    plan = run(chain(3), constraints={"macs": 1e9})
    assert plan.best(macs=1e9).score == 1.0


def test_an_infeasible_constraint_fails_before_anything_is_scored() -> None:
    def never(model: nn.Module) -> float:
        raise AssertionError

    with pytest.raises(InfeasibleError, match="macs <= 10: the closest feasible macs is 3"):
        run(chain(2), evaluate=never, constraints={"macs": 10})


def test_latency_is_measured_on_the_front_only() -> None:
    nested = chain(9)
    plan = run(nested, max_evaluations=20)
    timed = [p for p in plan.points if p.cost.latency_ms is not None]
    assert len(nested.extracted) == len(set(nested.extracted)) == len(timed)
    assert plan.points[0] in timed
    assert {p.subnet for p in plan.pareto_front(cost="params")} <= {p.subnet for p in timed}
    nested = chain(9)
    run(nested, max_evaluations=300)
    assert len(nested.extracted) <= 26


def test_a_latency_is_of_the_inputs_it_was_measured_on(tmp_path: Path) -> None:
    nested, found = chain(2), []
    for inputs in (torch.zeros(1), torch.zeros(1), torch.zeros(8)):
        nested.example_inputs = (inputs,)
        plan = run(nested, storage=tmp_path / "scores.db", max_evaluations=3)
        found.append(plan.points[0].cost.latency_ms)
    assert found[0] == found[1] != found[2]


def test_statistics_of_before_decide_no_score() -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 1, 8, 8)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 3)).eval()

    def scores(nested: nestify.NestedModel, **options: Any) -> list[float]:
        def score(model: nn.Module) -> float:
            with torch.no_grad():
                return float(model(x).square().mean())

        options |= {"target": "sim", "method": "uniform", "max_evaluations": 4}
        return [point.score for point in search(nested, score, **options).points]

    nested = nestify.transform(net, "fn3-channel", (x,))
    found = [scores(nested, calibrate=data) for data in ([x], [5 * x + 3], None)]
    fresh = [
        scores(nestify.transform(net, "fn3-channel", (x,)), calibrate=data)
        for data in ([x], [5 * x + 3], None)
    ]
    assert found == fresh
    assert found[0] != found[1] != found[2]


def test_scores_whose_squares_overflow_end_a_search() -> None:
    nested = chain(3)

    def failing(model: nn.Module) -> float:
        active = cast(FakeNested, model).active
        return -sys.float_info.max if min(active.values()) < 3 else 1.0

    assert len(run(nested, evaluate=failing, max_evaluations=24).points) > 3


def test_latency_constraints_are_met_by_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    nested = chain(6, size=64, step=1)

    def by_macs(model: nn.Module, args: Any, kwargs: Any) -> float:
        return nested.estimate([nested.extracted[-1]]).row(0).macs / 1000

    monkeypatch.setattr("tests.fakes.SIM", Target("sim", "macs", 1, by_macs))
    plan = run(nested, constraints={"latency_ms": 12.0}, max_evaluations=24)
    best = plan.best(latency_ms=12.0)
    assert best.cost.latency_ms is not None
    assert 10.5 < best.cost.latency_ms <= 12.0
    with pytest.raises(InfeasibleError, match="closest feasible latency_ms is"):
        run(nested, constraints={"latency_ms": 0.01})


def test_progress_is_told() -> None:
    told: list[tuple[str, int, int, str]] = []
    plan = run(chain(3), max_evaluations=10, progress=lambda *row: told.append(row))
    scoring = [done for stage, done, _, _ in told if stage == "scoring subnets"]
    assert scoring == list(range(1, len(plan.points) + 1))
    assert "measuring latency" in {stage for stage, *_ in told}


def test_a_plan_says_how_it_came_about() -> None:
    nested = chain(2)
    plan = run(nested, method="random", seed=3)
    assert (plan.recipe, plan.targets, plan.method, plan.seed) == ("fake", ("sim",), "random", 3)
    assert (plan.model, plan.scoring, plan.convention) == (None, "evaluate", "torch")
    assert plan.fingerprint == fingerprint(cast(Any, nested))


def test_fingerprints_tell_weights_from_structure() -> None:
    one, other, wider = chain(2), chain(2), chain(2, size=72)
    other.weight.data += 1
    prints = [fingerprint(cast(Any, nested)) for nested in (one, other, wider)]
    assert prints[0].structure == prints[1].structure != prints[2].structure
    assert prints[0].weights == prints[2].weights != prints[1].weights


@pytest.mark.parametrize(
    "tensor",
    [
        torch.empty_strided((1,), (768,)),
        torch.tensor(3),
        torch.ones(3, 2, dtype=torch.bfloat16).t(),
        torch.empty(0),
    ],
)
def test_any_tensor_has_a_fingerprint(tensor: torch.Tensor) -> None:
    nested = chain(2)
    nested.register_buffer("extra", tensor)
    assert len(fingerprint(cast(Any, nested)).weights) == 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "magic"}, "unknown method 'magic': the methods are fn3, algorithm1, greedy"),
        ({"target": "gpu"}, "unknown target 'gpu'"),
        ({"target": ()}, r"one or more distinct names, such as 'cpu'; got \(\)"),
        ({"target": ("sim", "sim")}, "one or more distinct names"),
        ({"target": 5}, "target of search must be one or more distinct names, .*; got 5"),
        ({"target": ["sim", 5]}, r"one or more distinct names, .*; got \['sim', 5\]"),
        ({"method": None}, "method of search must be a string, such as 'fn3' or .*; got None"),
        ({"max_evaluations": 2}, "must be a whole number from 3 on, or None; got 2"),
        ({"max_evaluations": "5"}, "must be a whole number from 3 on, or None; got '5'"),
        ({"max_evaluations": math.inf}, "must be a whole number from 3 on, or None; got inf"),
        ({"workers": 1.5}, "must be a whole number from 1 on, or 'ray' or 'ray:N'; got 1.5"),
        ({"workers": True}, "workers of search .*; got True"),
        ({"workers": None}, "workers of search .*; got None"),
        ({"seed": "lucky"}, "seed of search must be a whole number from 0 to .*; got 'lucky'"),
        ({"seed": -1}, "seed of search must be a whole number from 0 to .*; got -1"),
        ({"seed": 2**63}, "seed of search must be a whole number from 0 to .*; got 9"),
        ({"seed": None}, "seed of search must be a whole number from 0 to .*; got None"),
        ({"constraints": {"flops": 3}}, "unknown cost 'flops'"),
        ({"constraints": {5: 3}}, r"bounds by the name of their cost, .*; got \{5: 3\}"),
        ({"constraints": 5}, "constraints of search must be bounds .*, or None; got 5"),
        ({"storage": 5}, "storage of search must be a path, as text .*, or None; got 5"),
        ({"storage": "a\0b"}, "storage of search must be a path, as text .*, or None; got 'a"),
        ({"batches": 5}, "batches of search must be batches, such as a list .*, or None; got 5"),
        ({"calibrate": 5}, "calibrate of search must be batches, .*, or None; got 5"),
        ({"convention": ["torch"]}, r"must be one of torch, caffe; got \['torch'\]"),
        ({"evaluator": 5}, "evaluator of search must be a string, or None; got 5"),
        ({"reuse_bytes": -1}, "reuse_bytes of search must be a whole number from 0 on; got -1"),
        ({"progress": 5}, "progress of search must be a function .*, or None; got 5"),
        ({"evaluate": 5}, "evaluate of search must be a function that .*, or None; got 5"),
        ({"evaluate": lambda model: None}, "must return a number, not None"),
        ({"evaluate": lambda model: "high"}, "must return a number, not a str"),
        ({"evaluate": lambda model: math.nan}, "must return a finite number, not nan"),
    ],
)
def test_wrong_usage(options: dict[str, Any], message: str) -> None:
    nested = chain(2)
    with pytest.raises(UsageError, match=message):
        run(nested, **options)
    assert nested.training
    assert nested.active == nested.space.largest()


def test_every_argument_is_checked() -> None:
    assert list(ARGUMENTS) == list(inspect.signature(search).parameters)
    with pytest.raises(UsageError, match=r"must be a nested model, .*; got Linear"):
        search(cast(Any, nn.Linear(2, 2)), evaluate)


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    """As is what can be iterated over by its items alone, as a data set of torch."""

    class Items:
        def __getitem__(self, place: int) -> float:
            return [0.5, 0.25][place]

    plan = run(
        chain(2),
        evaluate=lambda model, batch: [batch] * 4,
        batches=Items(),
        seed=np.int64(3),
        workers=np.int64(1),
        max_evaluations=np.int32(4),
    )
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json").seed == 3


def test_an_evaluate_that_fails_shows_its_line() -> None:
    def broken(model: nn.Module) -> float:
        return [0.5][3]

    with pytest.raises(CaptureError, match=r"IndexError.*\(test_driver.py:\d+: return \[0.5\]"):
        run(chain(2), evaluate=broken)


def test_nothing_elastic_is_nothing_to_search() -> None:
    with pytest.raises(UsageError, match="no dim of the model is elastic under 'fake'"):
        run(FakeNested([], {}))


# fidelity ---------------------------------------------------------------------------------------
