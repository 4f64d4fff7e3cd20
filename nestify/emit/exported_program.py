"""A module as an exported program, with the batch left free where the model allows it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nestify.capture.autocast import as_asked
from nestify.emit.call import Call
from nestify.emit.report import first_line, quiet
from nestify.errors import CaptureError


@dataclass(frozen=True)
class Program:
    """An exported program, and why its batch is fixed where it is (``""`` where it is free)."""

    exported: torch.export.ExportedProgram
    fixed_because: str

    @property
    def free_batch(self) -> bool:
        """Whether the batch is a symbol of the program."""
        return not self.fixed_because


def exported_program(model: torch.nn.Module, call: Call, *, dynamic_batch: bool) -> Program:
    """``torch.export`` of the model, with a free batch if that is asked for and possible.

    >>> call = Call((torch.zeros(1, 3),), {})
    >>> program = exported_program(torch.nn.Linear(3, 2), call, dynamic_batch=True)
    >>> program.free_batch
    True

    Raises:
        CaptureError: the model cannot be exported at any batch size.
    """
    reason = "dynamic_batch=False was asked for" if call.batch else "no input has a batch dim"
    if dynamic_batch and call.batch:
        try:
            return Program(_export(model, call, free=True), "")
        except Exception as error:
            reason = _plain(error)
    try:
        return Program(_export(model, call, free=False), reason)
    except Exception as error:
        raise CaptureError(
            f"torch.export cannot capture {type(model).__name__}: {first_line(error)}; "
            "export a module without data-dependent Python control flow"
        ) from error


def check_batches(
    model: torch.nn.Module, call: Call, *, dynamic_batch: bool
) -> tuple[tuple[int, ...], str]:
    """The batch sizes to check at, and why there is only one (``""`` where there are two).

    The second size is one that no export is traced at.
    """
    size = call.batch
    if size is None or not dynamic_batch:
        return ((size,) if size else ()), ""
    other = max(size, 2) + 1
    try:
        call.resized(other).run(model)
    except Exception as error:
        return (size,), f"the model does not run at batch {other}: {first_line(error)}"
    return (size, other), ""


def _export(model: torch.nn.Module, call: Call, *, free: bool) -> torch.export.ExportedProgram:
    # torch.export takes a dim of size 1 for a constant, so a free batch is traced at 2 or more.
    call = call.resized(max(call.batch or 0, 2)) if free else call
    kwargs = dict(call.kwargs)
    shapes = torch.export.ShapesCollection()
    if free:
        batch = torch.export.Dim("batch", min=1)
        for tensor in call.batched:
            shapes[tensor] = {0: batch}
    with quiet(), torch.no_grad(), as_asked():
        return torch.export.export(
            model,
            call.args,
            kwargs,
            dynamic_shapes=shapes.dynamic_shapes(model, call.args, kwargs) if free else None,
            strict=False,
        )


def _plain(error: Exception) -> str:
    # "Constraints violated ..." is a heading; the line that says what happened is the next one.
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip(" -")]
    telling = [line for line in lines if "specialized" in line or "Mod(" in line]
    return (telling or lines or [type(error).__name__])[0].split(". If you're")[0]
