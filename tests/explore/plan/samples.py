"""Plans drawn by hypothesis, and a small one."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from nestify.explore.plan import Plan, PlanPoint
from nestify.graph.cost import Cost
from nestify.nested.fingerprint import Fingerprint
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
