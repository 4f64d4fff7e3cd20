"""``nestify plan``: search a model's subnets, show the trade-off, ship the one that fits."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nestify.cli.choice import check_writable, choose, metadata, rebased
from nestify.cli.common import (
    DEFAULT_RECIPE,
    ConstraintOption,
    DebugOption,
    JsonOption,
    ModelArgument,
    RecipeOption,
    RefitOption,
    SeedOption,
    TargetOption,
    command,
    progress,
    say,
)
from nestify.cli.tradeoff import PlanResult
from nestify.errors import UsageError

if TYPE_CHECKING:
    from nestify.analysis import Payoff
    from nestify.cli.model_reference import Source
    from nestify.emit import ExportReport
    from nestify.explore.plan import Plan, PlanPoint
    from nestify.nested.model import NestedModel


@command
def plan_command(
    model: ModelArgument,
    target: TargetOption = ["cpu"],  # noqa: B006  typer copies it
    recipe: RecipeOption = DEFAULT_RECIPE,
    constraint: ConstraintOption = [],  # noqa: B006  typer copies it
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Where plan.json and slim.onnx go: ./NAME-plan if not given.",
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            help="How to search: fn3, algorithm1, greedy, evolution, random or uniform, "
            "with options in braces.",
        ),
    ] = "fn3",
    evaluations: Annotated[
        int, typer.Option("--evaluations", min=3, help="How many subnets to score at most.")
    ] = 64,
    storage: Annotated[
        Path | None,
        typer.Option(
            "--storage",
            metavar="FILE",
            help="Where scores are kept, so that the same command goes on after it was stopped: "
            "DIR/search.db if not given.",
        ),
    ] = None,
    workers: Annotated[
        str,
        typer.Option("--workers", help="How many processes score subnets, or ray, or ray:N."),
    ] = "1",
    seed: SeedOption = 0,
    refit: RefitOption = False,
    as_document: JsonOption = False,
    debug: DebugOption = False,
) -> str:
    """Search the subnets of a model; write the plan, and the best fitting subnet as ONNX.

    Subnets are scored by the model file's evaluate(model), or by its evaluate(model, batch) on each
    of its batches, higher being better; or else by how closely their outputs follow the full
    model's on the example inputs. Without a constraint the subnet of the best score at no more
    than half of the MACs is exported. Where the model file has calibration, BatchNorm statistics
    are re-estimated from it for every subnet.

    \b
    Examples:
      nestify plan examples/mobilenet_v2.py --target cpu
      nestify plan model.py --constraint latency_ms=5 --constraint params=2e6 --out small
      nestify plan timm:resnet50 --json > result.json
    """  # noqa: D301  typer keeps the lines after a backspace as they are
    from nestify.cli.model_reference import load_source
    from nestify.explore import search
    from nestify.explore.arguments import ARGUMENTS
    from nestify.explore.constraints import parse_constraints
    from nestify.explore.executors import check_workers
    from nestify.explore.methods import parse_method
    from nestify.support.arguments import check
    from nestify.targets import usable_target

    count = int(workers) if workers.isdecimal() else workers
    given = {"target": target, "workers": count}
    check("search", given, {name: ARGUMENTS[name] for name in given})
    check_workers(count)
    bounds = parse_constraints(constraint)
    for name in target:
        usable_target(name)
    parse_method(method)
    say(f"loading {model}")
    source = load_source(model)
    check_refit(source, refit=refit)
    batches = source.batches()
    folder = out or Path(f"{source.name}-plan")
    check_writable(folder)
    nested = nested_from(source, recipe)
    with _made(folder), _kept(storage or folder / "search.db") as file:
        with progress() as show:
            plan = search(
                nested,
                source.evaluate,
                target=target,
                method=method,
                constraints=bounds,
                storage=file,
                batches=batches,
                calibrate=source.calibration,
                workers=count,
                seed=seed,
                max_evaluations=evaluations,
                progress=show,
            )
        plan = replace(plan, model=rebased(model, Path.cwd(), folder.absolute()))
        point = choose(plan, None, bounds)
        report = _write(plan, point, nested, source, folder, refit=refit)
        saved = _payoff(nested, target[0])
    result = PlanResult(model, plan, point, report, bounds, folder, saved)
    return result.document() if as_document else result.text()


def nested_from(source: Source, recipe: str) -> NestedModel:
    """Capture and nest a loaded model."""
    import nestify

    say(f"capturing and nesting with {recipe}")
    return nestify.transform(
        source.model,
        recipe,
        source.example_inputs,
        source.example_kwargs,
        calibration=source.calibration,
    )


def check_refit(source: Source, *, refit: bool) -> None:
    """Refuse to refit a model without data before anything takes time."""
    if refit and source.calibration is None:
        raise UsageError(
            f"--refit fits weights to calibration data, and {source.name} has none: define "
            "calibration, a list of batches of inputs, in the model file"
        )


def _payoff(nested: NestedModel, target: str) -> Payoff | None:
    """What the rewriting passes of the recipe saved on ``target``, if there were any."""
    if nested.graph.original is None:
        return None
    from nestify.analysis import payoff

    say(f"timing the original and its rewritten layers on {target} ...")
    return payoff(nested, target)


def _write(
    plan: Plan,
    point: PlanPoint,
    nested: NestedModel,
    source: Source,
    folder: Path,
    *,
    refit: bool,
) -> ExportReport:
    """Write slim.onnx and then plan.json: both or neither, each whole."""
    from nestify.emit import export
    from nestify.support.atomic_files import publish_files, staging

    slim = nested.extract(point.subnet, calibrate=source.calibration, refit=refit).eval()
    say("exporting and checking in onnxruntime ...")
    with staging(folder) as stage:
        report = export(
            slim,
            stage / "slim.onnx",
            example_inputs=nested.example_inputs,
            example_kwargs=nested.example_kwargs,
            metadata=metadata(plan, point, source.name, refit=refit),
        )
        plan.save(stage / "plan.json")
        names = [file.name for file in report.files]
        publish_files(stage, [*names, "plan.json"], folder)
    files = tuple(folder / name for name in names)
    return replace(report, path=folder / "slim.onnx", files=files)


@contextmanager
def _kept(storage: Path) -> Generator[Path]:
    """The file of scores: it stays when a command is interrupted, and goes if it holds nothing."""
    new = not storage.exists()
    try:
        yield storage
    except BaseException as error:
        from nestify.explore.storage import stored_scores

        if new and storage.exists() and not stored_scores(storage):
            for suffix in ("", "-wal", "-shm"):
                storage.with_name(storage.name + suffix).unlink(missing_ok=True)
        elif isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(f"scores are kept in {storage}; to go on from them") from None
        raise


@contextmanager
def _made(folder: Path) -> Generator[None]:
    """Make ``folder`` and its parents; take those made away again if what follows fails."""
    missing = [part for part in (folder, *folder.parents) if not part.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for part in missing:
            part.rmdir() if not any(part.iterdir()) else None
        raise
