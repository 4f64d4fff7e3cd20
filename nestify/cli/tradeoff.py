"""The result of ``nestify plan``: the trade-off table for people, one document for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nestify.cli.choice import rule
from nestify.cli.common import as_json, table
from nestify.explore.constraints import split_key

if TYPE_CHECKING:
    from nestify.analysis import Payoff
    from nestify.emit import ExportReport
    from nestify.explore.plan import Plan, PlanPoint

SHOWN_ROWS = 12


@dataclass(frozen=True)
class PlanResult:
    """What was searched, chosen and written.

    Attributes:
        model: the model's reference.
        plan: all points.
        point: the one that was exported.
        report: what its export says.
        bounds: the constraints.
        folder: where both files are.
        payoff: what a rewrite before the search saved on the first target.
    """

    model: str
    plan: Plan
    point: PlanPoint
    report: ExportReport
    bounds: Mapping[str, float]
    folder: Path
    payoff: Payoff | None = None

    @property
    def cost(self) -> str:
        """The cost of the front that is shown: the first constraint's, else MACs."""
        return split_key(next(iter(self.bounds), "macs"))[0]

    @property
    def full(self) -> PlanPoint:
        """The largest subnet: the model as it was."""
        return max(self.plan.on(), key=lambda point: point.cost.macs)

    def text(self) -> str:
        """Return the table and what was written."""
        front = self.plan.pareto_front(cost=self.cost)
        shown = _thinned(front, self.point)
        count = f"{len(shown)} of {len(front)}" if len(shown) < len(front) else str(len(shown))
        headers = ("", "size", "score", "MACs", "params", "latency ms", "units at")
        title = (
            f"Pareto front of score and {self.cost} on {self.plan.targets[0]}: {count} points, "
            f"from {len(self.plan.points)} scored by {self.plan.method} search"
        )
        lines = [
            title,
            _scoring(self.plan),
            "",
            table(
                [self._row(point) for point in shown],
                headers,
                colalign=("left", *["right"] * 5, "left"),
            ),
            "",
            *([self.payoff.text] if self.payoff else []),
            f"* exported: {rule(self.bounds) if self.point.subnet else 'there is no other'}",
            f"{self.report}; equal to torch in onnxruntime",
            f"{self.folder / 'plan.json'}: all {len(self.plan.points)} points",
        ]
        return "\n".join(lines)

    def document(self) -> str:
        """Return the JSON document."""
        from nestify.explore.plan import point_fields

        plan, report = self.plan, self.report
        fields = {
            "model": self.model,
            "recipe": plan.recipe,
            "targets": list(plan.targets),
            "convention": plan.convention,
            "scoring": plan.scoring,
            "method": plan.method,
            "seed": plan.seed,
            "constraints": dict(self.bounds),
            "plan": str(self.folder / "plan.json"),
            "points": len(plan.points),
            "full": point_fields(self.full),
            "chosen": point_fields(self.point),
            "front_cost": self.cost,
            "front": [point_fields(point) for point in plan.pareto_front(cost=self.cost)],
            "onnx": {
                "path": str(report.path),
                "size_bytes": report.size_bytes,
                "error": report.error,
                "tolerance": report.tolerance,
                "checked_in": "onnxruntime",
            },
        }
        if self.payoff is not None:
            fields["rewrite"] = asdict(self.payoff)
        return as_json("plan", fields)

    def _row(self, point: PlanPoint) -> tuple[str, ...]:
        cost = point.cost
        return (
            "*" if point.subnet == self.point.subnet else "",
            f"{cost.size_bytes / self.full.cost.size_bytes:.0%}",
            f"{point.score:.4f}",
            f"{cost.macs:,}",
            f"{cost.params:,}",
            "" if cost.latency_ms is None else f"{cost.latency_ms:.2f}",
            self._units_at(point),
        )

    def _units_at(self, point: PlanPoint) -> str:
        """Say at which share of their full size the units stand."""
        full = self.full.subnet
        shares = [size / full[name] for name, size in point.subnet.items() if full[name]]
        if not shares:  # a recipe that only rewrites
            return ""
        low, high = f"{min(shares):.0%}", f"{max(shares):.0%}"
        return low if low == high else f"{low} to {high}"


def _thinned(front: Sequence[PlanPoint], chosen: PlanPoint) -> Sequence[PlanPoint]:
    """Thin a long front evenly; its ends and the chosen point stay."""
    if len(front) <= SHOWN_ROWS:
        return front
    step = (len(front) - 1) / (SHOWN_ROWS - 1)
    kept = {round(i * step) for i in range(SHOWN_ROWS)}
    return [p for i, p in enumerate(front) if i in kept or p.subnet == chosen.subnet]


def _scoring(plan: Plan) -> str:
    if plan.scoring == "evaluate":
        return "score: the model file's evaluate"
    return (
        "score: fidelity to the full model, 1 / (1 + relative distance of the outputs on the "
        "example inputs), as the model file has no evaluate"
    )
