"""A network as a ``.pt2`` file: an output only, for nestify never reads one (loading runs its
code).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from nestify.emit.call import Call
from nestify.emit.check import largest_error, samples
from nestify.emit.exported_program import check_batches, exported_program
from nestify.emit.report import ExportReport, first_line, quiet
from nestify.errors import CaptureError
from nestify.support.atomic_files import publish_files, staging

if TYPE_CHECKING:
    from nestify.emit.request import Request


def write_pt2(request: Request) -> ExportReport:
    """Export, check by running the exported program, and write ``request.path``."""
    model, call = request.model, request.call
    batches, reason = check_batches(model, call, dynamic_batch=request.dynamic_batch)
    program = exported_program(model, call, dynamic_batch=len(batches) == 2)
    batches = batches if program.free_batch else batches[:1]
    cases = samples(model, call, batches or (None,))
    with quiet():
        module = program.exported.module()
    what, run = "the exported program", partial(_run, module)
    error = largest_error(what, run, cases, request.tolerance)
    _forget_sources(program.exported)
    name = request.path.name
    with staging(request.path) as folder:
        try:
            with quiet():
                torch.export.save(program.exported, folder / name, extra_files=request.properties)
        except Exception as error:
            raise CaptureError(
                f"torch.export cannot save {type(model).__name__}: {first_line(error)}; let "
                "forward take and return tensors in tuples, lists and dicts, or export a folder"
            ) from error
        files = publish_files(folder, [name], request.path.parent)
    return request.report(
        files,
        error,
        request.batch_notes(reason or program.fixed_because),
        free_batch=program.free_batch,
        checked_batches=batches,
        nodes=sum(node.op == "call_function" for node in program.exported.graph.nodes),
    )


def _run(module: torch.nn.Module, call: Call) -> Any:
    with quiet():
        return call.run(module)


def _forget_sources(exported: torch.export.ExportedProgram) -> None:
    # Stack traces are absolute paths of the user's sources, and the example inputs are the user's
    # data.
    exported.example_inputs = None
    for module in exported.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
