"""What was asked for: the checked arguments of one export."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nestify.emit.call import Call, input_names, output_names
from nestify.emit.report import ExportReport, ExportWarning, first_line
from nestify.errors import UsageError
from nestify.support.adopted_tree import AdoptedTree


@dataclass(frozen=True)
class Request:
    """One export: the model and its example on the CPU, where to, and how strictly."""

    model: torch.nn.Module
    call: Call
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    path: Path
    kind: str
    metadata: Mapping[str, str]
    simplify: bool
    dynamic_batch: bool
    tolerance: float

    @property
    def properties(self) -> dict[str, str]:
        """The metadata under the keys that files use: ``nestify.<key>``, in order."""
        plain = {key.removeprefix("nestify."): value for key, value in self.metadata.items()}
        return {f"nestify.{key}": plain[key] for key in sorted(plain)}

    def batch_notes(self, reason: str) -> list[str]:
        """What to warn of if the batch is fixed for ``reason`` but was to be free."""
        if not (reason and self.dynamic_batch):
            return []
        at = f"fixed at {self.call.batch}" if self.call.batch else "not free"
        return [f"the batch is {at}: {reason}; pass dynamic_batch=False to accept that"]

    def report(
        self, files: tuple[Path, ...], error: float, notes: list[str], **details: Any
    ) -> ExportReport:
        """The report of this request; its notes are also given as warnings."""
        for note in notes:
            # Four frames up is the caller of export().
            warnings.warn(note, ExportWarning, stacklevel=4)
        return ExportReport(
            kind=self.kind,
            path=self.path,
            files=files,
            size_bytes=sum(file.stat().st_size for file in files),
            error=error,
            tolerance=self.tolerance,
            inputs=self.inputs,
            outputs=self.outputs,
            metadata=dict(self.metadata),
            warnings=tuple(notes),
            **details,
        )


def checked_model(model: torch.nn.Module) -> torch.nn.Module:
    """The model if it can be exported: in eval mode, with real weights; a copy on the CPU if it was
    elsewhere.

    Raises:
        UsageError: naming the module that trains or has no weights; for a nested model.
    """
    if isinstance(model, AdoptedTree):
        raise UsageError(
            "a nested model is a family of networks, and a file holds one: export "
            "nested.extract(subnet), such as nested.extract(nested.active)"
        )
    for name, module in model.named_modules():
        # A bare nn.Module is a container that fx made up; it has no mode.
        if module.training and type(module) is not torch.nn.Module:
            where = f"{type(model).__name__}, submodule {name!r}" if name else type(model).__name__
            raise UsageError(f"cannot export {where} in training mode; call model.eval() first")
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    meta = next((name for name, tensor in tensors.items() if tensor.is_meta), None)
    if meta is not None:
        raise UsageError(
            f"cannot export {meta!r}: it is on the meta device, without values; load weights first"
        )
    if any(tensor.device.type != "cpu" for tensor in tensors.values()):
        return copy.deepcopy(model).cpu()
    return model


def checked_call(args: object, kwargs: Mapping[str, Any] | None) -> Call:
    """The example inputs as a call on the CPU.

    Raises:
        UsageError: ``args`` is not a tuple, or there is no tensor in it.
    """
    if not isinstance(args, tuple):
        raise UsageError(
            "example_inputs must be a tuple of the arguments of forward, "
            f"not {type(args).__name__}; write example_inputs=(x,)"
        )
    call = Call(args, dict(kwargs or {}))
    if not call.tensors:
        raise UsageError(
            "example_inputs holds no tensor; pass one example of what the model is called with"
        )
    return call.mapped(lambda t: t.detach().cpu())


def checked_names(model: torch.nn.Module, call: Call) -> dict[str, tuple[str, ...]]:
    """The names of the inputs and outputs, seen by running the model once.

    Raises:
        UsageError: the model does not run on its example, or gives no tensor.
    """
    try:
        output = call.run(model)
    except Exception as error:
        raise UsageError(
            f"{type(model).__name__} does not run on example_inputs: {first_line(error)}; "
            "pass the arguments of one working call"
        ) from error
    inputs = input_names(model, call)
    outputs = output_names(output, taken=inputs)
    if not outputs:
        raise UsageError(f"{type(model).__name__} returns no tensor, so there is nothing to export")
    return {"inputs": tuple(inputs), "outputs": tuple(outputs)}


def checked_metadata(metadata: Mapping[str, str] | None) -> dict[str, str]:
    """The metadata if it is text.

    Raises:
        UsageError: naming the entry that is not.
    """
    result = dict(metadata or {})
    for key, value in result.items():
        if not (isinstance(key, str) and isinstance(value, str)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(
                f"metadata holds text only, not {key!r}: {value!r}; write str(...) around it"
            )
    return result
