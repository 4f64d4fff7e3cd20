"""Exact fronts, exact lookups, and constraints as text."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nestify.errors import InfeasibleError, UsageError
from nestify.explore.constraints import COSTS, parse_constraints, readable
from nestify.explore.pareto import pareto
from nestify.explore.plan import Plan, PlanPoint
from nestify.graph.cost import Cost
from nestify.space import Subnet
from tests.explore.plan.samples import COUNTS, plans, small_plan

# --- fronts ---------------------------------------------------------------------------------------


@given(plans(), st.sampled_from(COSTS))
def test_front_is_exactly_the_points_that_none_dominates(plan: Plan, cost: str) -> None:
    for target in plan.targets:
        points = [p for p in plan.on(target) if getattr(p.cost, cost) is not None]

        def beaten(p: PlanPoint, points: list[PlanPoint] = points) -> bool:
            mine = getattr(p.cost, cost)
            return any(
                getattr(q.cost, cost) <= mine
                and q.score >= p.score
                and (getattr(q.cost, cost), q.score) != (mine, p.score)
                for q in points
            )

        front = plan.pareto_front(target, cost=cost)
        assert {p.subnet for p in front} == {p.subnet for p in points if not beaten(p)}
        values = [(getattr(p.cost, cost), p.score) for p in front]
        assert values == sorted(values), "cheapest first, and the score rises with the cost"


@given(st.lists(st.tuples(COUNTS, COUNTS)))
def test_pareto_indices(pairs: list[tuple[int, int]]) -> None:
    cost, score = [c for c, _ in pairs], [s for _, s in pairs]
    expected = {
        i
        for i, (c, s) in enumerate(pairs)
        if not any(d <= c and t >= s and (d, t) != (c, s) for d, t in pairs)
    }
    found = pareto(cost, score)
    assert len(found) == len(set(found))
    assert set(found) == expected


def test_front_of_an_example() -> None:
    plan = small_plan()
    assert [p.score for p in plan.pareto_front("cpu", cost="macs")] == [0.5, 0.9, 1.0]
    assert [p.score for p in plan.pareto_front()] == [0.9, 1.0], "latency is not known of all"


def test_unknown_names_are_refused_with_the_choices() -> None:
    plan = small_plan()
    with pytest.raises(UsageError, match="no target 'gpu': it has cpu"):
        plan.pareto_front("gpu")
    with pytest.raises(UsageError, match=r"unknown cost 'latency': .* did you mean 'latency_ms'"):
        plan.pareto_front(cost="latency")
    with pytest.raises(UsageError, match="unknown cost 'flops': the costs are macs"):
        plan.best(flops=1)
    other: Any = None
    with pytest.raises(UsageError, match="unknown cost None: the costs are macs"):
        plan.pareto_front(cost=other)
    for bound in (math.nan, True, "5", 10**400):
        with pytest.raises(UsageError, match="is no number"):
            plan.best(macs=bound)


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64, Fraction])
def test_numbers_of_other_types_are_bounds(kind: Any) -> None:
    plan = small_plan()
    assert plan.best(macs=kind(200)).score == 0.9
    with pytest.raises(InfeasibleError, match="meets macs <= 10: the closest feasible macs is 100"):
        plan.best(macs=kind(10))
    with pytest.raises(UsageError, match=r"macs=.*nan.* is no number"):
        plan.best(macs=np.float32("nan"))


@pytest.mark.parametrize("bound", [torch.tensor(200), np.array(200.0), torch.ones(3)])
def test_tensors_are_no_bounds(bound: Any) -> None:
    """Nor of one element: what they compare to are tensors. The message says what to pass."""
    with pytest.raises(UsageError, match=r"macs=.* is no number; of a tensor pass its item\(\)"):
        small_plan().best(macs=bound)


# --- best -----------------------------------------------------------------------------------------


BOUNDS = st.dictionaries(st.sampled_from(COSTS), st.integers(-1, 7) | st.floats(0, 7), max_size=5)


@given(plans(), BOUNDS)
def test_best_is_the_best_by_brute_force(plan: Plan, bounds: dict[str, float]) -> None:
    target = plan.targets[-1]

    def fits(point: PlanPoint) -> bool:
        values = [(getattr(point.cost, name), bound) for name, bound in bounds.items()]
        return all(value is not None and value <= bound for value, bound in values)

    feasible = [p for p in plan.on(target) if fits(p)]
    if not feasible:
        with pytest.raises(InfeasibleError, match=r"closest feasible|measured for no point"):
            plan.best(target, **bounds)
        return
    best = plan.best(target, **bounds)
    assert fits(best)
    assert best.score == max(p.score for p in feasible)
    assert best.cost.macs == min(p.cost.macs for p in feasible if p.score == best.score)
    assert best.target == target


@given(plans(), st.sampled_from(COSTS[:4]))
def test_an_infeasible_bound_names_a_value_that_is_feasible(plan: Plan, cost: str) -> None:
    least = min(getattr(p.cost, cost) for p in plan.points)
    with pytest.raises(InfeasibleError, match=f"closest feasible {cost} is {least}"):
        plan.best(**{cost: least - 1})
    plan.best(**{cost: least})


def test_infeasible_together_names_the_price_of_each() -> None:
    plan = small_plan()
    with pytest.raises(InfeasibleError) as caught:
        plan.best(macs=250, params=1)
    assert str(caught.value) == (
        "no subnet meets macs <= 250 and params <= 1: "
        "the closest feasible macs is 400; the closest feasible params is 2"
    )


def test_infeasible_in_a_ring_names_the_nearest_point() -> None:
    rows = [(9, 9, 1), (3, 9, 9), (9, 1, 9)]
    points = tuple(
        PlanPoint(Subnet({"u": i}), 1.0, {"cpu": Cost(*row, 0)}, "cpu")
        for i, row in enumerate(rows)
    )
    with pytest.raises(
        InfeasibleError, match="closest feasible point has macs 9, params 9, size_bytes 1"
    ):
        small_plan(points=points).best(macs=4, params=4, size_bytes=1)


def test_unmeasured_latency_is_said() -> None:
    point = PlanPoint(Subnet({"u": 1}), 1.0, {"cpu": Cost(1, 1, 1, 1)}, "cpu")
    with pytest.raises(InfeasibleError, match="latency_ms was measured for no point"):
        small_plan(points=(point,)).best(latency_ms=5)


# --- constraints as text --------------------------------------------------------------------------


def test_constraints_are_read() -> None:
    assert parse_constraints(["latency_ms=5", "params = 2e6"]) == {"latency_ms": 5, "params": 2e6}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["latency_ms"], "'latency_ms' is not NAME=NUMBER"),
        (["latency=5"], "unknown cost 'latency'.*did you mean 'latency_ms'"),
        (["macs=many"], "'many' is no number"),
        (["macs=nan"], "is no number"),
        (["macs="], "'' is no number"),
        (["macs=1", "macs=2"], "macs is given twice"),
    ],
)
def test_wrong_constraints(texts: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_constraints(texts)


@pytest.mark.parametrize(
    ("value", "text"), [(300774272, "300,774,272"), (2e6, "2,000,000"), (4.98765, "4.988")]
)
def test_readable_numbers(value: float, text: str) -> None:
    assert readable(value) == text
