"""Plans for several targets, and several plans made one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nestify.errors import InfeasibleError, UsageError
from nestify.explore.constraints import parse_constraints
from nestify.explore.plan import Plan, PlanPoint
from nestify.graph.cost import Cost
from nestify.nested.fingerprint import Fingerprint
from nestify.space import Subnet
from tests.explore.plan.samples import small_plan


def on_two_targets() -> Plan:
    rows = [(1.0, 9.0, 30.0), (0.9, 5.0, 25.0), (0.8, 6.0, 10.0), (0.5, 2.0, 5.0)]
    points = tuple(
        PlanPoint(
            Subnet({"conv1": i}),
            score,
            {"cpu": Cost(100 * i, i, i, i, here), "phone": Cost(100 * i, i, i, i, there)},
            "cpu",
        )
        for i, (score, here, there) in enumerate(rows, 1)
    )
    return small_plan(targets=("cpu", "phone"), points=points)


def test_constraints_may_name_targets() -> None:
    plan = on_two_targets()
    assert plan.best(latency_ms=6).score == 0.9
    assert plan.best(**{"latency_ms@phone": 12.0}).score == 0.8
    assert plan.best("phone", latency_ms=12).score == 0.8
    assert plan.best("phone", **{"latency_ms": 12.0, "latency_ms@cpu": 3.0}).score == 0.5
    with pytest.raises(InfeasibleError, match="the closest feasible latency_ms@phone is 10"):
        plan.best(macs=300, **{"latency_ms@phone": 7.0, "latency_ms@cpu": 6.0})
    with pytest.raises(
        UsageError, match=r"latency_ms@watch names an unknown target: there are cpu"
    ):
        plan.best(**{"latency_ms@watch": 1.0})
    assert parse_constraints(["latency_ms@phone=8"]) == {"latency_ms@phone": 8.0}
    with pytest.raises(UsageError, match="unknown cost 'latency'"):
        parse_constraints(["latency@phone=8"])


def test_only_plans_merge() -> None:
    other: Any = None
    with pytest.raises(UsageError, match="merged with another plan, not with None"):
        small_plan().merged(other)


def test_plans_of_the_same_model_merge() -> None:
    both = on_two_targets()
    there = tuple(replace(p, costs={"phone": p.costs["phone"]}) for p in both.points[2:])
    later = replace(both, targets=("phone",), points=there, seed=1)
    first = small_plan(points=tuple(replace(p, costs={"cpu": p.cost}) for p in both.points[:3]))
    merged = first.merged(later)
    assert merged.targets == ("cpu", "phone")
    assert [p.subnet["conv1"] for p in merged.points] == [1, 2, 3, 4]
    latencies = [[p.costs[t].latency_ms for t in merged.targets] for p in merged.points]
    assert latencies == [[9.0, None], [5.0, None], [6.0, 10.0], [None, 5.0]]
    assert merged.merged(first) == merged == merged.merged(later)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fingerprint": Fingerprint("s", "other")}, "their fingerprint differs"),
        ({"evaluator": "e1"}, "their evaluator differs, 'e0' and 'e1'"),
        ({"convention": "caffe"}, "their convention differs"),
        ({"recipe": "fn3-head"}, "their recipe differs"),
    ],
)
def test_plans_of_other_models_do_not_merge(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        small_plan().merged(small_plan(**changes))


def test_plans_that_disagree_do_not_merge() -> None:
    plan = small_plan()
    other = replace(plan, points=(replace(plan.points[0], score=0.1), *plan.points[1:]))
    with pytest.raises(
        UsageError, match=r"scored 1.0 in one and 0.1 in the other; is evaluate ran"
    ):
        plan.merged(other)
