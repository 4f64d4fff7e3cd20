"""A network as a folder: ``model.py``, ``weights.safetensors`` and a model card.

The source is written from the module's own graph if it has one, else from what ``torch.export``
sees; with readable ops first, then with every op under its own name. The first text that runs and
agrees bit for bit is the one that is kept.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from nestify.emit.atomic import check_replaceable, publish_folder, staging
from nestify.emit.calls import Call, input_names, output_names
from nestify.emit.card import model_card
from nestify.emit.compare import Sample, largest_error, samples
from nestify.emit.program import check_batches, exported_program
from nestify.emit.report import ExportReport, first_line, quiet
from nestify.emit.request import Request
from nestify.emit.source import model_source
from nestify.emit.state import write_safetensors
from nestify.errors import NestifyError, UsageError

FILES = frozenset(["model.py", "weights.safetensors", "README.md", "__pycache__"])


def write_folder(request: Request) -> ExportReport:
    """Write the folder ``request.path``, or nothing unless it was loaded and agreed exactly."""
    check_replaceable(request.path, FILES)
    model, call = _contiguous(request.model), request.call
    batches, reason = check_batches(model, call, dynamic_batch=request.dynamic_batch)
    free = len(batches) == 2
    cases = samples(model, call, batches or (None,))
    with staging(request.path) as folder:
        graph = _accepted(folder, request, _forms(model, call, free=free), cases)
        files = publish_folder(folder, request.path, FILES)
    names = input_names(model, call)
    return request.report(
        files,
        0.0,
        request.batch_notes(reason),
        free_batch=free,
        checked_batches=batches,
        inputs=tuple(names),
        outputs=tuple(output_names(call.run(model), taken=names)),
        nodes=len(graph.graph.nodes),
    )


def _accepted(
    folder: Path,
    request: Request,
    forms: Iterator[tuple[torch.fx.GraphModule, bool]],
    cases: list[Sample],
) -> torch.fx.GraphModule:
    """The first form whose files agree; they are in ``folder`` then."""
    refusals: list[NestifyError] = []
    for graph, literal_ops in forms:
        try:
            _write(folder, graph, request, literal_ops)
            _check(folder, cases)
        except NestifyError as error:
            refusals.append(error)
        else:
            return graph
    # The last form is the plainest one: what stops it stops the export.
    raise refusals[-1]


def _forms(
    model: torch.nn.Module, call: Call, *, free: bool
) -> Iterator[tuple[torch.fx.GraphModule, bool]]:
    """Graph modules of the model, and whether to spell ops literally, the most readable first."""
    if isinstance(model, torch.fx.GraphModule):
        yield model, False
        yield model, True
    with quiet():
        exported = exported_program(model, call, dynamic_batch=free).exported.module(
            check_guards=False
        )
    assert isinstance(exported, torch.fx.GraphModule)
    yield exported, False
    yield exported, True


def _write(folder: Path, graph: torch.fx.GraphModule, request: Request, literal_ops: bool) -> None:
    source, state = model_source(graph, literal_ops=literal_ops)
    names = input_names(request.model, request.call)
    card = model_card(request.path.absolute().name, state, request.call, names, request.metadata)
    (folder / "model.py").write_text(source, encoding="utf-8")
    (folder / "README.md").write_text(card, encoding="utf-8")
    write_safetensors(folder / "weights.safetensors", state, request.properties)


def _check(folder: Path, cases: list[Sample]) -> None:
    try:
        model = _load(folder / "model.py")()
    except Exception as error:
        raise UsageError(f"the written model.py does not load: {first_line(error)}") from error
    largest_error("the written model.py", lambda call: call.run(model), cases, tolerance=0.0)


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
