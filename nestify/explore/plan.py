"""What a search found: every point with its score and its cost per target, kept in one JSON file.

A plan answers questions by lookup (`Plan.pareto_front`, `Plan.best`); it holds no weights and no
code, so a plan from a stranger can be read safely.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nestify.errors import ArtifactError, InfeasibleError, UsageError
from nestify.explore.constraints import (
    COSTS,
    check_constraints,
    check_cost_name,
    infeasible_message,
    meets,
)
from nestify.explore.pareto import pareto
from nestify.graph.cost import CONVENTIONS, Cost
from nestify.nested.fingerprint import Fingerprint
from nestify.space import Subnet
from nestify.support.arguments import PATH, check
from nestify.support.atomic_files import publish_files, staging
from nestify.support.strict_json import Fields, read_json
from nestify.support.user_code import kind_of

FORMAT = "nestify-plan"
VERSION = 2
SCORINGS = ("evaluate", "fidelity")


@dataclass(frozen=True)
class PlanPoint:
    """One subnet that was scored.

    Attributes:
        subnet: the choice of every unit.
        score: higher is better.
        costs: what the subnet costs, per target.
        target: the target that `cost` speaks of.
    """

    subnet: Subnet
    score: float
    costs: Mapping[str, Cost]
    target: str

    @property
    def cost(self) -> Cost:
        """What the subnet costs on `target`."""
        return self.costs[self.target]

    def value(self, name: str, target: str | None = None) -> float | None:
        """One cost on a target, `target` if None; None where it was not measured."""
        return getattr(self.costs[target or self.target], name)


@dataclass(frozen=True)
class Plan:
    """All points of a search.

    Example:
        >>> import nestify
        >>> plan = nestify.search(nested, evaluate, max_evaluations=16)
        >>> slim = nested.extract(plan.best(macs=2e6).subnet)
        >>> plan.save("plan.json")

    Attributes:
        model: the reference of the model, seen from the plan's folder; None for a live model.
        fingerprint: the hashes of the nested model that was searched.
        recipe: the recipe that nested it.
        targets: the targets that costs are given for.
        convention: how MACs are counted.
        scoring: ``"evaluate"`` for the user's own function, ``"fidelity"`` for the default.
        evaluator: the hash of that function and its data: scores of another do not compare.
        method: how the points were chosen.
        seed: the seed of the search.
        points: every point, in the order in which they were scored; the first is the largest
            subnet.
    """

    model: str | None
    fingerprint: Fingerprint
    recipe: str
    targets: tuple[str, ...]
    convention: str
    scoring: str
    evaluator: str
    method: str
    seed: int
    points: tuple[PlanPoint, ...]

    def on(self, target: str | None = None) -> tuple[PlanPoint, ...]:
        """Return all points, their `cost` that of ``target`` (the plan's first one if None)."""
        target = self.targets[0] if target is None else target
        if target not in self.targets:
            raise UsageError(f"the plan has no target {target!r}: it has {', '.join(self.targets)}")
        return tuple(replace(point, target=target) for point in self.points)

    def pareto_front(
        self, target: str | None = None, *, cost: str = "latency_ms"
    ) -> tuple[PlanPoint, ...]:
        """Return the points that no other point beats in both score and ``cost``, cheapest first.

        Points of which this cost is not known (latency is measured for some) take no part.

        Example:
            >>> macs = [point.cost.macs for point in plan.pareto_front("cpu", cost="macs")]
            >>> macs == sorted(macs)
            True

        Args:
            target: one of `targets`; None for the first.
            cost: ``macs``, ``params``, ``size_bytes``, ``activation_bytes`` or ``latency_ms``.

        Returns:
            The front; points equal in both are all in it.

        Raises:
            UsageError: an unknown target or cost.
        """
        check_cost_name(cost)
        known = [p for p in self.on(target) if getattr(p.cost, cost) is not None]
        front = pareto([getattr(p.cost, cost) for p in known], [p.score for p in known])
        return tuple(known[i] for i in front)

    def best(self, target: str | None = None, **constraints: float) -> PlanPoint:
        """Return the point of the highest score that meets every constraint.

        Example:
            >>> plan.best(target="cpu", macs=2e6, params=5000).cost.params <= 5000
            True
            >>> plan.best(**{"macs@cpu": 2e6, "latency_ms@cpu": 1000.0}).cost.latency_ms < 1000
            True

        Args:
            target: one of `targets`; None for the first.
            **constraints: upper bounds by the name of the cost; ``cost@target`` bounds it on a
                target of its own.

        Returns:
            The point; of equal scores the one with fewer MACs, then fewer parameters.

        Raises:
            UsageError: an unknown target or cost, or a bound that is not a number.
            InfeasibleError: no point meets all; the message names the closest feasible values.
        """
        check_constraints(constraints, self.targets)
        points = self.on(target)
        feasible = [p for p in points if meets(p.value, constraints)]
        if not feasible:
            raise InfeasibleError(infeasible_message([p.value for p in points], constraints))
        return max(feasible, key=lambda p: (p.score, -p.cost.macs, -p.cost.params))

    def merged(self, other: Plan) -> Plan:
        """Return the points of this plan and of another search of the same model.

        A subnet that both have is taken once, with the latencies that either measured; targets are
        those of both.

        Example:
            >>> plan.save("night.json")
            >>> night = Plan.load("night.json")
            >>> len(night.merged(plan).points) == len(plan.points)
            True

        Raises:
            UsageError: the other is no plan, or of another model, recipe, evaluator or convention,
                or a subnet has another score there.
        """
        return merged(self, other)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as JSON; the file is whole or absent.

        Raises:
            UsageError: ``path`` is no path, or cannot be written to.
        """
        check("the plan", {"path": path}, {"path": PATH})
        file = Path(path)
        if file.name in ("", ".."):
            raise UsageError(
                f"cannot write {str(file)!r}: it is a folder; name a file to put there"
            )
        with staging(file) as folder:
            (folder / file.name).write_text(self.to_json(), encoding="utf-8")
            publish_files(folder, [file.name], file.parent)

    def to_json(self) -> str:
        """Return the plan as JSON text, one point a line."""
        head: dict[str, Any] = {"format": FORMAT, "version": VERSION}
        head |= {k: v for k, v in asdict(replace(self, points=())).items() if k != "points"}
        lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
        points = ",\n".join(f"    {json.dumps(point_fields(point))}" for point in self.points)
        return "{\n" + ",\n".join([*lines, f'  "points": [\n{points}\n  ]']) + "\n}\n"

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a plan; nothing in the file is executed.

        Raises:
            UsageError: there is no such file.
            ArtifactError: the file is not exactly a plan of a known version.
        """
        return _plan(read_json(path, "plan"))


_SAME = ("fingerprint", "recipe", "convention", "scoring", "evaluator")


def merged(one: Plan, other: object) -> Plan:
    """`Plan.merged`."""
    if not isinstance(other, Plan):
        raise UsageError(f"a plan is merged with another plan, not with {kind_of(other)}")
    for name in _SAME:
        mine, theirs = getattr(one, name), getattr(other, name)
        if mine != theirs:
            raise UsageError(
                f"the plans cannot be merged: their {name} differs, {mine!r} and {theirs!r}"
            )
    points = {point.subnet: point for point in one.points}
    for point in other.points:
        points[point.subnet] = _joined(points.get(point.subnet), point)
    targets = tuple(dict.fromkeys([*one.targets, *other.targets]))
    return replace(one, targets=targets, points=tuple(_on_all(p, targets) for p in points.values()))


def _joined(mine: PlanPoint | None, theirs: PlanPoint) -> PlanPoint:
    if mine is None:
        return theirs
    if not math.isclose(mine.score, theirs.score, rel_tol=1e-6, abs_tol=1e-9):
        raise UsageError(
            f"the plans cannot be merged: {mine.subnet} scored {mine.score} in one and "
            f"{theirs.score} in the other; is evaluate random?"
        )
    costs = dict(mine.costs)
    for target, cost in theirs.costs.items():
        if target not in costs or costs[target].latency_ms is None:
            costs[target] = cost
    return replace(mine, costs=costs)


def _on_all(point: PlanPoint, targets: tuple[str, ...]) -> PlanPoint:
    """The point with a cost on every target: by formula the same, latency not measured."""
    blank = replace(next(iter(point.costs.values())), latency_ms=None)
    costs = {target: point.costs.get(target, blank) for target in targets}
    return replace(point, costs=costs, target=targets[0])


def point_fields(point: PlanPoint) -> dict[str, Any]:
    """Return a point as JSON values."""
    costs = {
        target: {name: getattr(cost, name) for name in COSTS}
        for target, cost in point.costs.items()
    }
    return {"score": point.score, "costs": costs, "subnet": dict(point.subnet.items())}


def _plan(fields: Fields) -> Plan:
    if fields.text("format") != FORMAT:
        raise ArtifactError(f"{fields.where} is refused: it is not a nestify plan")
    version = fields.integer("version")
    if version != VERSION:
        raise ArtifactError(
            f"{fields.where} is refused: its version is {version}, this nestify reads {VERSION}"
        )
    targets = _targets(fields)
    fingerprint = fields.fields("fingerprint")
    plan = Plan(
        model=fields.text_or_none("model"),
        fingerprint=Fingerprint(fingerprint.text("structure"), fingerprint.text("weights")),
        recipe=fields.text("recipe"),
        targets=targets,
        convention=fields.choice("convention", CONVENTIONS),
        scoring=fields.choice("scoring", SCORINGS),
        evaluator=fields.text("evaluator"),
        method=fields.text("method"),
        seed=fields.integer("seed"),
        points=_points(fields, targets),
    )
    fingerprint.done()
    fields.done()
    return plan


def _targets(fields: Fields) -> tuple[str, ...]:
    targets = fields.items("targets")
    if (
        not targets
        or not all(isinstance(t, str) for t in targets)
        or len({*targets}) < len(targets)
    ):
        raise ArtifactError(f"{fields.where} is refused: targets must be a list of distinct names")
    return tuple(targets)


def _points(fields: Fields, targets: tuple[str, ...]) -> tuple[PlanPoint, ...]:
    entries = fields.items("points")
    where = fields.where
    points = [
        _point(Fields.of(entry, f"{where}: point {i}"), targets) for i, entry in enumerate(entries)
    ]
    if not points:
        raise ArtifactError(f"{where} is refused: it has no points")
    if len({point.subnet for point in points}) < len(points):
        raise ArtifactError(f"{where} is refused: a subnet stands twice")
    units = {name for name, _ in points[0].subnet.items()}
    for i, point in enumerate(points):
        if {name for name, _ in point.subnet.items()} != units:
            raise ArtifactError(f"{where} is refused: point {i} has other units than point 0")
    return tuple(points)


def _point(fields: Fields, targets: tuple[str, ...]) -> PlanPoint:
    score = fields.number("score")
    by_target = fields.fields("costs")
    costs = {target: _cost(by_target.fields(target)) for target in targets}
    by_target.done()
    sizes = fields.fields("subnet")
    subnet = Subnet({name: sizes.integer(name) for name in sizes.names()})
    fields.done()
    return PlanPoint(subnet, score, costs, targets[0])


def _cost(fields: Fields) -> Cost:
    cost = Cost(
        macs=fields.integer("macs"),
        params=fields.integer("params"),
        size_bytes=fields.integer("size_bytes"),
        activation_bytes=fields.integer("activation_bytes"),
        latency_ms=fields.number_or_none("latency_ms", least=0),
    )
    fields.done()
    return cost
