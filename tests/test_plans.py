"""Plans: exact fronts, exact lookups, and files that are read with suspicion."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestify.constraints import COSTS, parse_constraints, readable
from nestify.cost import Cost
from nestify.errors import ArtifactError, InfeasibleError, UsageError
from nestify.fingerprints import Fingerprint
from nestify.pareto import pareto
from nestify.plans import Plan, PlanPoint
from nestify.space import Subnet

COUNTS = st.integers(min_value=0, max_value=6)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
NAMES = st.text(max_size=12)


def costs(latency: st.SearchStrategy[float | None] | None = None) -> st.SearchStrategy[Cost]:
    few = st.sampled_from([None, 0.5, 1.0, 2.5])
    return st.builds(Cost, COUNTS, COUNTS, COUNTS, COUNTS, few if latency is None else latency)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    targets = tuple(draw(st.lists(NAMES, min_size=1, max_size=2, unique=True)))
    units = draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))
    sizes = draw(
        st.lists(
            st.tuples(*(st.integers(0, 9) for _ in units)), min_size=1, unique=True, max_size=12
        )
    )
    scores = st.sampled_from([0.0, 0.25, 0.5, 1.0]) | FLOATS
    points = [
        PlanPoint(
            Subnet(dict(zip(units, row, strict=True))),
            draw(scores),
            {target: draw(costs()) for target in targets},
            targets[0],
        )
        for row in sizes
    ]
    return Plan(
        model=draw(st.none() | NAMES),
        fingerprint=Fingerprint(draw(NAMES), draw(NAMES)),
        recipe=draw(NAMES),
        targets=targets,
        convention="torch",
        scoring="evaluate",
        evaluator="e0",
        method="random",
        seed=draw(st.integers(0, 2**63 - 1)),
        points=tuple(points),
    )


def small_plan(**changes: Any) -> Plan:
    rows = [(1.0, 400, 80.0), (0.9, 200, 40.0), (0.5, 100, None), (0.8, 300, 50.0)]
    points = tuple(
        PlanPoint(Subnet({"conv1": i}), score, {"cpu": Cost(macs, i, i, i, ms)}, "cpu")
        for i, (score, macs, ms) in enumerate(rows, 1)
    )
    fields: dict[str, Any] = {
        "model": "../net.py",
        "fingerprint": Fingerprint("s", "w"),
        "recipe": "fn3-channel",
        "targets": ("cpu",),
        "convention": "torch",
        "scoring": "fidelity",
        "evaluator": "e0",
        "method": "greedy",
        "seed": 0,
        "points": points,
    }
    return Plan(**(fields | changes))


# fronts ---------------------------------------------------------------------------------------


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
    for bound in (math.nan, True, "5"):
        with pytest.raises(UsageError, match="is no number"):
            plan.best(macs=bound)


# best -------------------------------------------------------------------------------------------

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


# constraints as text ---------------------------------------------------------------------------


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


# files -----------------------------------------------------------------------------------------


@given(plan=plans())
def test_save_and_load_give_the_same_plan(plan: Plan, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    plan.save(path)
    assert Plan.load(path) == plan
    assert [p.name for p in path.parent.iterdir()] == ["plan.json"], "no temporary file is left"


def test_the_file_is_one_line_a_point(tmp_path: Path) -> None:
    small_plan().save(tmp_path / "plan.json")
    lines = (tmp_path / "plan.json").read_text().splitlines()
    assert sum('"score"' in line for line in lines) == 4
    assert json.loads("\n".join(lines))["version"] == 2


def test_a_save_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    small_plan().save(path)
    before = path.read_text()
    with pytest.raises(TypeError):
        small_plan(recipe=object()).save(path)
    assert path.read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


def test_saving_nowhere_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no folder"):
        small_plan().save(tmp_path / "absent" / "plan.json")


def test_loading_nothing_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        Plan.load(tmp_path / "plan.json")
    with pytest.raises(UsageError, match="is not a file"):
        Plan.load(tmp_path)


def changed(change: Callable[[dict[str, Any]], None]) -> str:
    document = json.loads(small_plan().to_json())
    change(document)
    return json.dumps(document)


def setter(*path: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: Any) -> None:
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = to

    return change


POINT = ("points", 0)
COST = (*POINT, "costs", "cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (setter("version", to=1), "its version is 1, this nestify reads 2"),
        (setter("format", to="other"), "not a nestify plan"),
        (setter("more", to=1), "unknown field 'more'"),
        (setter("seed", to=-1), "seed must be between 0"),
        (setter("seed", to=2**63), "seed must be between 0"),
        (setter("seed", to=True), "seed must be an integer, not True"),
        (setter("seed", to=1.0), "seed must be an integer, not 1.0"),
        (setter("model", to=3), "model must be a string or null, not 3"),
        (setter("recipe", to=None), "recipe must be a string, not None"),
        (setter("targets", to=[]), "targets must be a list of distinct names"),
        (setter("targets", to=["cpu", "cpu"]), "targets must be a list of distinct names"),
        (setter("targets", to=[["cpu"]]), "targets must be a list of distinct names"),
        (setter("targets", to=["gpu"]), "the field 'gpu' is missing"),
        (setter("points", to=[]), "it has no points"),
        (setter("points", to={}), "points must be a list"),
        (setter(*POINT, to=[]), "point 0 is refused: a JSON object is expected"),
        (setter(*POINT, "more", to=1), "point 0 is refused: unknown field 'more'"),
        (setter(*POINT, "score", to="high"), "score must be a number, not 'high'"),
        (setter(*POINT, "score", to=10**400), "score must be a finite number"),
        (setter(*POINT, "subnet", to={"conv1": "24"}), "conv1 must be an integer"),
        (setter(*POINT, "subnet", to={"conv1": -1}), "conv1 must be between 0"),
        (setter(*POINT, "subnet", to={"conv1": 2}), "a subnet stands twice"),
        (setter(*POINT, "subnet", to={"conv2": 1}), "point 1 has other units than point 0"),
        (setter(*COST, "macs", to=1.5), "macs must be an integer"),
        (setter(*COST, "latency_ms", to="5"), "latency_ms must be a number"),
        (setter(*COST, "joules", to=5), "unknown field 'joules'"),
        (setter("fingerprint", "more", to=5), "unknown field 'more'"),
        (lambda document: document.pop("recipe"), "the field 'recipe' is missing"),
    ],
)
def test_a_changed_plan_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    path = tmp_path / "plan.json"
    path.write_text(changed(change))
    with pytest.raises(ArtifactError, match=message):
        Plan.load(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "Expecting value"),
        (b"[]", "a JSON object is expected"),
        (b'{"a": 1, "a": 1}', "the key 'a' stands twice"),
        (b'{"a": NaN}', "NaN is not a finite number"),
        (b'{"a": -Infinity}', "-Infinity is not a finite number"),
        (b"[" * 100_000, "nested too deeply"),
        (b"\xff\xfe", "not UTF-8"),
        (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
    ],
)
def test_files_that_are_no_plan(tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(text)
    with pytest.raises(ArtifactError, match=message):
        Plan.load(path)


def test_a_number_too_large_for_a_float_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(small_plan().to_json().replace('"score": 1.0', '"score": 1e999'))
    with pytest.raises(ArtifactError, match="score must be a finite number, not inf"):
        Plan.load(path)


# several targets, several plans -------------------------------------------------------------------


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
