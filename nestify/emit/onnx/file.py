"""A network as an ``.onnx`` file that onnxruntime was seen to agree with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nestify.emit.call import Call
from nestify.emit.check import Sample, largest_error, samples
from nestify.emit.exported_program import check_batches, exported_program
from nestify.emit.onnx.names import batch_is_free, name_transposed, scrub, translate
from nestify.emit.report import ExportReport, first_line, quiet
from nestify.emit.request import Request
from nestify.errors import CaptureError, VerificationError
from nestify.support.atomic_files import publish_files, staging

if TYPE_CHECKING:
    import onnx

# A protobuf message ends at 2 GiB; weights above this go to a second file.
EXTERNAL_BYTES = 1_500_000_000


def write_onnx(request: Request) -> ExportReport:
    """Export, simplify, check and write ``request.path``, or nothing if a check fails."""
    model, call = request.model, request.call
    batches, reason = check_batches(model, call, dynamic_batch=request.dynamic_batch)
    proto, fixed = _translated(request, free=len(batches) == 2)
    notes = request.batch_notes(reason or fixed)
    batches = batches[:1] if fixed else batches
    cases = samples(model, call, batches or (None,))
    with staging(request.path) as folder:
        graph, error = _accepted(proto, request, cases, folder / request.path.name, notes)
        files = publish_files(folder, _parts(folder, request.path.name), request.path.parent)
    return request.report(
        files,
        error,
        notes,
        free_batch=not fixed,
        checked_batches=batches,
        simplified=graph is not proto,
        nodes=len(graph.graph.node),
    )


def _translated(request: Request, *, free: bool) -> tuple[onnx.ModelProto, str]:
    """The ONNX graph, and why its batch is fixed (``""`` where it is free)."""
    call, names = request.call, request.inputs
    program = exported_program(request.model, call, dynamic_batch=free)
    if not program.free_batch:
        return translate(program.exported, names, request.outputs), program.fixed_because
    batched = {id(tensor) for tensor in call.batched}
    pairs = zip(names, call.tensors, strict=True)
    reason = "the exporter made it a constant"
    try:
        proto = translate(program.exported, names, request.outputs)
        if batch_is_free(proto, [name for name, tensor in pairs if id(tensor) in batched]):
            return proto, ""
    except CaptureError as error:  # such as a convolution with a group for each sample
        reason = first_line(error)
    # It was traced at a size of our choice: write the size of the example instead.
    program = exported_program(request.model, call, dynamic_batch=False)
    return translate(program.exported, names, request.outputs), reason


def _accepted(
    proto: onnx.ModelProto,
    request: Request,
    cases: list[Sample],
    path: Path,
    notes: list[str],
) -> tuple[onnx.ModelProto, float]:
    """Write the simplified graph if it agrees, else the plain one; with the error that was seen."""
    parameters = dict(request.model.named_parameters())

    def written(graph: onnx.ModelProto) -> float:
        name_transposed(graph, parameters)
        scrub(graph, request.properties)
        return _write_and_check(graph, path, request.inputs, cases, request.tolerance)

    if request.simplify and _weight_bytes(proto) < EXTERNAL_BYTES:
        try:
            graph = _simplified(proto)
            return graph, written(graph)
        except Exception as error:
            notes.append(f"the file is not simplified, onnxsim failed: {first_line(error)}")
    return proto, written(proto)


def _simplified(proto: onnx.ModelProto) -> onnx.ModelProto:
    # Three seconds to import, so only here; its own check looks at nothing, so ours follows.
    with quiet():
        import onnxsim

        simplified, _ = onnxsim.simplify(proto)
    return simplified


def _write_and_check(
    proto: onnx.ModelProto, path: Path, names: Sequence[str], cases: list[Sample], tolerance: float
) -> float:
    import onnx

    _clear(path.parent)
    large = _weight_bytes(proto) >= EXTERNAL_BYTES
    if large:
        onnx.save_model(proto, path, save_as_external_data=True, location=f"{path.name}.data")
    else:
        path.write_bytes(proto.SerializeToString(deterministic=True))
    try:
        # By path: a model above 2 GiB cannot be checked in memory.
        onnx.checker.check_model(path, full_check=True)
    except Exception as error:
        raise VerificationError(
            f"onnx.checker refuses the file: {first_line(error)}; nothing was written. "
            "In bfloat16 or float64 many ops have no ONNX form: export model.float(), "
            "and let blocks under autocast use float16"
        ) from error
    return largest_error("the ONNX file in onnxruntime", _runner(path, names), cases, tolerance)


def _runner(path: Path, names: Sequence[str]) -> Callable[[Call], list[torch.Tensor]]:
    with quiet():
        import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only: ORT's advice on graph shapes is not for the user
    try:
        session: Any = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise VerificationError(
            f"onnxruntime cannot load the file: {first_line(error)}; nothing was written. "
            "Its CPU kernels cover float32 best: export model.float()"
        ) from error

    def run(call: Call) -> list[torch.Tensor]:
        arrays = [t.detach().contiguous().numpy() for t in call.tensors]
        results = session.run(None, dict(zip(names, arrays, strict=True)))
        return [torch.from_numpy(array.copy()) for array in results]

    return run


def _weight_bytes(proto: onnx.ModelProto) -> int:
    return sum(len(tensor.raw_data) for tensor in proto.graph.initializer)


def _clear(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def _parts(folder: Path, main: str) -> list[str]:
    # The weights first: a reader who finds the model finds them too.
    return sorted((file.name for file in folder.iterdir()), key=lambda name: name == main)
