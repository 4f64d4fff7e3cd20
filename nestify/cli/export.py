"""``nestify export``: ship a subnet of a saved plan."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nestify.cli.choice import check_file, choose, metadata, recorded_model, rule
from nestify.cli.common import (
    ConstraintOption,
    DebugOption,
    JsonOption,
    RefitOption,
    as_json,
    command,
    say,
)
from nestify.errors import ArtifactError

if TYPE_CHECKING:
    from nestify.emit import ExportReport
    from nestify.explore.plan import Plan, PlanPoint
    from nestify.nested.model import NestedModel


@command
def export_command(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan.json.")],
    out: Annotated[
        Path,
        typer.Option(
            "--out", metavar="PATH", help="NAME.onnx, NAME.pt2, or a folder for Python source."
        ),
    ],
    constraint: ConstraintOption = [],  # noqa: B006  typer copies it
    target: Annotated[
        str | None, typer.Option("--target", help="The target whose costs count: the plan's first.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="The model, where it is not where the plan says it is."),
    ] = None,
    refit: RefitOption = False,
    as_document: JsonOption = False,
    debug: DebugOption = False,
) -> str:
    """Export the best subnet of a plan that meets the constraints, checked against torch.

    The model is loaded again from where the plan says it is, which runs the code of that file.
    Without a constraint the subnet of the best score at no more than half of the MACs is exported.

    \b
    Examples:
      nestify export mobilenet_v2-plan/plan.json --constraint latency_ms=5 --out slim.onnx
      nestify export plan.json --constraint params=2e6 --out slim/
    """  # noqa: D301  typer keeps the lines after a backspace as they are
    from nestify.cli.model_reference import load_source
    from nestify.cli.plan import check_refit, nested_from
    from nestify.emit import export
    from nestify.explore.constraints import parse_constraints
    from nestify.explore.plan import Plan

    bounds = parse_constraints(constraint)
    check_file(out)
    loaded = Plan.load(plan)
    point = choose(loaded, target, bounds)
    reference = model or recorded_model(loaded, plan)
    say(f"loading {reference}")
    source = load_source(reference)
    check_refit(source, refit=refit)
    nested = nested_from(source, loaded.recipe)
    same_weights = _check_fingerprint(loaded, nested, reference)
    nested.space.validate(point.subnet)
    slim = nested.extract(point.subnet, calibrate=source.calibration, refit=refit).eval()
    say("exporting and checking ...")
    report = export(
        slim,
        str(out),
        example_inputs=nested.example_inputs,
        example_kwargs=nested.example_kwargs,
        metadata=metadata(loaded, point, source.name, refit=refit),
    )
    if as_document:
        return as_json("export", _document(report, point, same_weights))
    costs = f"{point.cost.macs:,} MACs, {point.cost.params:,} parameters"
    return f"{report}\n{rule(bounds)}: score {point.score:.4f}, {costs}"


def _check_fingerprint(plan: Plan, nested: NestedModel, reference: str) -> bool:
    """Refuse another structure; warn of other weights. Return whether the weights are the same."""
    from nestify.nested.fingerprint import fingerprint

    found = fingerprint(nested)
    if found.structure != plan.fingerprint.structure:
        raise ArtifactError(
            f"the plan was made for another model than {reference}: names, shapes or units differ; "
            "plan again, or name the right one with --model"
        )
    if found.weights != plan.fingerprint.weights:
        say(
            f"warning: the weights of {reference} are not those that were planned: the scores "
            "of the plan may no longer hold",
            style="yellow",
        )
    return found.weights == plan.fingerprint.weights


def _document(report: ExportReport, point: PlanPoint, same_weights: bool) -> dict[str, Any]:
    from nestify.explore.plan import point_fields

    fields = {key: value for key, value in asdict(report).items() if key != "metadata"}
    fields |= {"path": str(report.path), "files": [str(file) for file in report.files]}
    return {"export": fields, "chosen": point_fields(point), "weights_as_planned": same_weights}
