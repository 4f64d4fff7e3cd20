"""A network as a folder: ``model.py``, ``weights.safetensors`` and a model card.

The source is written from the module's own graph if it has one, else from what ``torch.export``
sees; with readable ops first, then with every op under its own name. The first text that runs and
agrees is kept: bit for bit if it comes from the module's own graph, else within the tolerance.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nestify.emit.check import Sample, largest_error, samples
from nestify.emit.exported_program import check_batches, exported_program
from nestify.emit.report import ExportReport, first_line, quiet
from nestify.emit.request import Request
from nestify.emit.source.model_card import model_card
from nestify.emit.source.model_py import model_source
from nestify.emit.source.weights import write_safetensors
from nestify.errors import NestifyError, UsageError
from nestify.support.atomic_files import check_replaceable, publish_folder, staging

FILES = frozenset(["model.py", "weights.safetensors", "README.md", "__pycache__"])


@dataclass(frozen=True)
class _Form:
    """One way to write the source: from which graph, and how strictly it is held to the model."""

    graph: torch.fx.GraphModule
    literal_ops: bool
    tolerance: float = 0.0
    fixed_because: str = ""


def write_folder(request: Request) -> ExportReport:
    """Write the folder ``request.path``, or nothing unless it was loaded and agreed."""
    check_replaceable(request.path, FILES)
    model, call = _contiguous(request.model), request.call
    batches, reason = check_batches(model, call, dynamic_batch=request.dynamic_batch)
    cases = samples(model, call, batches or (None,))
    forms = _forms(model, request, free=len(batches) == 2)
    with staging(request.path) as folder:
        form, error = _accepted(folder, request, forms, cases)
        files = publish_folder(folder, request.path, FILES)
    free = len(batches) == 2 and not form.fixed_because
    return request.report(
        files,
        error,
        request.batch_notes(reason or form.fixed_because),
        free_batch=free,
        checked_batches=batches if free else batches[:1],
        nodes=len(form.graph.graph.nodes),
    )


def _accepted(
    folder: Path, request: Request, forms: Iterator[_Form], cases: list[Sample]
) -> tuple[_Form, float]:
    """The first form whose files agree, with their error; they are in ``folder`` then."""
    refusals: list[NestifyError] = []
    for form in forms:
        try:
            _write(folder, form.graph, request, form.literal_ops)
            # The first two samples are those at the batch size of the example.
            return form, _check(folder, cases[:2] if form.fixed_because else cases, form.tolerance)
        except NestifyError as error:
            refusals.append(error)
    # The last form is the plainest one: what stops it stops the export.
    raise refusals[-1]


def _forms(model: torch.nn.Module, request: Request, *, free: bool) -> Iterator[_Form]:
    """The ways to write the model, the most readable first."""
    if isinstance(model, torch.fx.GraphModule):
        yield _Form(model, literal_ops=False)
        yield _Form(model, literal_ops=True)
    program = exported_program(model, request.call, dynamic_batch=free)
    with quiet():
        graph = program.exported.module(check_guards=False)
    assert isinstance(graph, torch.fx.GraphModule)
    # Fused kernels of the model may be several ops here, so equal up to rounding.
    fixed = program.fixed_because if free else ""
    yield _Form(graph, False, request.tolerance, fixed)
    yield _Form(graph, True, request.tolerance, fixed)


def _write(folder: Path, graph: torch.fx.GraphModule, request: Request, literal_ops: bool) -> None:
    source, state = model_source(graph, literal_ops=literal_ops)
    title, names = request.path.absolute().name, request.inputs
    card = model_card(title, state, request.call, names, request.metadata)
    (folder / "model.py").write_text(source, encoding="utf-8")
    (folder / "README.md").write_text(card, encoding="utf-8")
    write_safetensors(folder / "weights.safetensors", state, request.properties)


def _check(folder: Path, cases: list[Sample], tolerance: float) -> float:
    try:
        model = _load(folder / "model.py")()
    except Exception as error:
        raise UsageError(f"the written model.py does not load: {first_line(error)}") from error
    return largest_error("the written model.py", lambda call: call.run(model), cases, tolerance)


def _load(path: Path) -> Callable[[], Any]:
    # A fresh namespace instead of an import: no entry in sys.modules, no __pycache__ in the result.
    namespace: dict[str, Any] = {"__name__": "model", "__file__": str(path)}
    code = compile(path.read_text(encoding="utf-8"), str(path), "exec")
    exec(code, namespace)
    return namespace["load"]


def _contiguous(model: torch.nn.Module) -> torch.nn.Module:
    # A file keeps no strides, and other strides may mean other kernels with other rounding.
    tensors = [*model.parameters(), *model.buffers()]
    if all(tensor.is_contiguous() for tensor in tensors):
        return model
    model = copy.deepcopy(model)
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = tensor.data.contiguous()
    return model
