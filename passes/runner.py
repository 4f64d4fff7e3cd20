"""Run the passes of a recipe in order, and hold each to what it claims."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor

from nestify.capture.batches import flat_batches
from nestify.errors import NestifyError, UsageError, VerificationError
from nestify.graph.graph import Graph
from nestify.passes.protocol import NO_DATA, Data, Pass, Reading
from nestify.passes.recipe import recipe_text
from nestify.runtime.lockstep import Walk
from nestify.support.closeness import LIMITS, relative_error

__all__ = ["apply_passes", "data_for"]


def data_for(
    passes: Sequence[Pass],
    calibration: Iterable[Any] | None,
    loss: Callable[[Any, Any], Tensor] | None = None,
) -> Data:
    """The data that these passes read; batches are read once, and only where a pass wants them.

    Raises:
        UsageError: a loss that no pass reads.
    """
    read = frozenset[str]().union(*(step.reads for step in passes if isinstance(step, Reading)))
    if loss is not None and "loss" not in read:
        raise UsageError(
            f"loss= is for passes that measure by it (rank); the recipe has none of them: "
            f"{recipe_text(passes)}"
        )
    wanted = calibration is not None and "calibration" in read
    return Data(list(calibration) if wanted and calibration is not None else None, loss)


def apply_passes(graph: Graph, passes: Sequence[Pass], data: Data = NO_DATA) -> Graph:
    """The graph after all passes.

    Raises:
        UsageError: a pass cannot be applied; it is named, with those before it.
        VerificationError: a pass did not keep what it claims: a defect of the pass.
    """
    for i, step in enumerate(passes):
        where = _place(step, passes[:i])
        try:
            graph = _applied(graph, step, data)
        except NestifyError as error:
            if len(passes) > 1:
                error.args = (f"{error}{where}", *error.args[1:])
            raise
        except Exception as error:
            error.add_note(f"nestify:{where}")
            raise
    return graph


def _place(step: Pass, before: Sequence[Pass]) -> str:
    after = f", after {recipe_text(before)}" if before else ""
    return f" (pass {recipe_text([step])}{after})"


def _applied(graph: Graph, step: Pass, data: Data) -> Graph:
    if step.role == "rewrites" and graph.units:
        raise UsageError(
            f"units were chosen before a rewrite ({graph.units[0].name!r}, ...); put the "
            "passes that rewrite (root-8) before those that choose units (fn3-channel)"
        )
    made = step.apply(graph, data)
    if step.role == "chooses" and made.capture is not graph.capture:
        raise VerificationError(f"pass {step.name} says that it chooses, and rewrote the network")
    if step.role == "rewrites" and made.units:
        raise VerificationError(f"pass {step.name} says that it rewrites, and chose units")
    if step.role == "rewrites" and all(c.preserves for c in made.changes[len(graph.changes) :]):
        _check_function(step, graph, made, data)
    return made


def _check_function(step: Pass, before: Graph, after: Graph, data: Data) -> None:
    """Run both graphs on one batch: what is claimed is checked."""
    batches = data.calibration
    flat = flat_batches(before.capture, batches and list(batches[:1]))
    expected, found = (Walk.of(each, flat).run() for each in (before, after))
    dtypes = {tensor.dtype for tensor in (*expected, *before.capture.tensors.values())}
    limit = max((LIMITS[dtype] for dtype in dtypes if dtype in LIMITS), default=0.0)
    error = relative_error(expected, found)
    if not error <= limit:
        raise VerificationError(
            f"{step.name} changed the function by {error:.1e} relative (limit {limit:g}), and says "
            "that it preserves it; this is a defect of the pass: please report it with the model",
            error,
        )
