"""Which point of a plan is shipped, and where a plan says its model is."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from nestify.errors import InfeasibleError, UsageError

if TYPE_CHECKING:
    from nestify.explore.plan import Plan, PlanPoint


def choose(plan: Plan, target: str | None, constraints: Mapping[str, float]) -> PlanPoint:
    """Return the best point under the constraints; without any, under half of the full MACs."""
    if constraints:
        return plan.best(target, **constraints)
    points = plan.on(target)
    half = max(point.cost.macs for point in points) / 2
    try:
        return plan.best(target, macs=half)
    except InfeasibleError:  # the space does not reach that far down: take its cheapest point
        return min(points, key=lambda point: point.cost.macs)


def rule(constraints: Mapping[str, float]) -> str:
    """Say by which rule `choose` chooses."""
    if not constraints:
        return "best score at no more than half of the MACs"
    return "best score with " + " and ".join(f"{k} <= {v:g}" for k, v in constraints.items())


def metadata(plan: Plan, point: PlanPoint, name: str, *, refit: bool) -> dict[str, str]:
    """Return what an exported file says about where it comes from; scores are of before a refit."""
    from nestify.explore.plan import point_fields

    fields = point_fields(point)
    return {
        "model": name,
        "recipe": plan.recipe,
        "subnet": point.subnet.to_json(),
        "score": repr(point.score),
        "scoring": plan.scoring,
        "costs": json.dumps(fields["costs"]),
        "convention": plan.convention,
        "refit": str(refit).lower(),
    }


def rebased(reference: str, start: Path, base: Path) -> str:
    """Rewrite a reference whose file is seen from ``start`` to be seen from ``base``.

    A plan names its model from its own folder, so that the two can be moved together.

    Example:
        >>> rebased("nets/tiny.py:net", Path("/home/me"), Path("/home/me/tiny-plan"))
        '../nets/tiny.py:net'
    """
    from nestify.cli.model_reference import file_of, with_file

    file = file_of(reference)
    return with_file(reference, Path(os.path.relpath(start / file, base))) if file else reference


def check_writable(folder: Path) -> None:
    """Fail before any work is done if ``folder`` can neither be made nor written into.

    Raises:
        UsageError: saying what stands in the way.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--out {str(folder)!r} is a file; name a folder")
    there = next(part for part in (folder.absolute(), *folder.absolute().parents) if part.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UsageError(
            f"--out {str(folder)!r} cannot be written: {there} is not a writable folder"
        )


def recorded_model(plan: Plan, plan_file: Path) -> str:
    """Return the reference of the model of a plan, seen from here.

    Raises:
        UsageError: the plan was made from a live model and names none.
    """
    if plan.model is None:
        raise UsageError(f"{plan_file} names no model (it was made from a live one): pass --model")
    return rebased(plan.model, plan_file.parent.absolute(), Path.cwd())


def check_file(path: Path) -> None:
    """Fail before any work is done if nothing can be written at ``path``.

    Raises:
        UsageError: saying what stands in the way.
    """
    folder = path.absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UsageError(f"--out {str(path)!r} cannot be written: {folder} is no writable folder")
