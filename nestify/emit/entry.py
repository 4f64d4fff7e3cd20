"""``nestify.export``: which form the path asks for, and the checks that all forms share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from nestify.emit.keyed import keys_for_all
from nestify.emit.onnx.file import write_onnx
from nestify.emit.pt2 import write_pt2
from nestify.emit.report import ExportReport
from nestify.emit.request import (
    Request,
    checked_call,
    checked_metadata,
    checked_model,
    checked_names,
)
from nestify.emit.source.folder import write_folder
from nestify.errors import UsageError
from nestify.support.arguments import PATH, check
from nestify.support.atomic_files import parent_of

_WRITERS = {"onnx": write_onnx, "pt2": write_pt2, "folder": write_folder}


def export(
    model: torch.nn.Module,
    path: str | Path,
    *,
    example_inputs: tuple[Any, ...],
    example_kwargs: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
    simplify: bool = True,
    dynamic_batch: bool = True,
    tolerance: float = 1e-5,
) -> ExportReport:
    """Write a network in a form that needs no nestify, after seeing that the form computes the
    same.

    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU()).eval()
    >>> report = export(model, "net/", example_inputs=(torch.randn(2, 3),))
    >>> [file.name for file in report.files], report.error
    (['README.md', 'model.py', 'weights.safetensors'], 0.0)

    Args:
        model: Any module in eval mode; the graph module of an extracted subnet reads best as
            source.
        path: ``name.onnx``, ``name.pt2``, or a folder (no suffix) for ``model.py`` +
            ``weights.safetensors``.
        example_inputs: The positional arguments of one call.
        example_kwargs: Its keyword arguments.
        metadata: Text to store with the network, as ``nestify.<key>``.
        simplify: Run onnxsim (ONNX only); a simplified file that does not agree is given up.
        dynamic_batch: Keep dim 0 free, for all inputs that have the first one's size there; where
            that is not possible the batch is fixed and an :class:`ExportWarning` says why.
        tolerance: The largest relative error allowed in float32
            (:func:`nestify.emit.check.deviation`); the source of a graph
            module must agree bit for bit.

    Returns:
        What was written and the error that was measured.

    Raises:
        UsageError: an argument is wrong, or the model cannot take this form.
        CaptureError: the exporter cannot express the model.
        VerificationError: the result does not agree with the model. In each case nothing is
        written.
    """
    if tolerance <= 0:
        raise UsageError(f"tolerance must be positive, not {tolerance}; 1e-5 suits float32")
    check("the export", {"path": path}, {"path": PATH})
    kind = kind_of(path)
    parent_of(Path(path))
    call = checked_call(example_inputs, example_kwargs)
    model = checked_model(model)
    with keys_for_all():
        request = Request(
            model=model,
            call=call,
            **checked_names(model, call),
            path=Path(path),
            kind=kind,
            metadata=checked_metadata(metadata),
            simplify=simplify,
            dynamic_batch=dynamic_batch,
            tolerance=tolerance,
        )
        return _WRITERS[kind](request)


def kind_of(path: str | Path) -> str:
    """``"onnx"``, ``"pt2"`` or ``"folder"``, from the name alone where possible.

    >>> kind_of("slim.onnx"), kind_of("slim"), kind_of("slim.v2/")
    ('onnx', 'folder', 'folder')
    """
    suffix = Path(path).suffix.lower()
    if str(path).endswith("/") or not suffix:
        return "folder"
    if suffix in (".onnx", ".pt2"):
        if Path(path).is_dir():
            raise UsageError(
                f"cannot write {path}: a folder of that name exists; choose another name"
            )
        return suffix[1:]
    if Path(path).is_dir():
        return "folder"
    raise UsageError(
        f"cannot tell what to write from {str(path)!r}: choose a name that ends in .onnx or .pt2, "
        "or a folder (no suffix, or a slash at the end)"
    )
