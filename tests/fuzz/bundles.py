"""onnxruntime on many small networks at once: exported as one file, told apart by their outputs.

An export costs about a second, most of it the same for any size. Where a file cannot be made, the
network to blame is found by halves.
"""

from __future__ import annotations

import copy
import math
import os
import re
import sys
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from nestify.emit import export
from nestify.rules import op_name
from nestify.support.closeness import relative_error
from tests.fuzz.doubt import orders_equal_values, sensitivity, sensitivity_of_calls
from tests.fuzz.prelude import double_precision

__all__ = [
    "Network",
    "Verdict",
    "at_another_batch",
    "in_onnxruntime",
    "native_output_silenced",
]

TOLERANCE = 1e-5
_MISSING = re.compile(r"(?:aten|prims)[.:]+(\w+)")


@dataclass(frozen=True, slots=True)
class Network:
    """An extracted subnet in float64, and the inputs to try it on."""

    module: fx.GraphModule
    inputs: tuple[torch.Tensor, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a network fared: ``equal``, ``different``, ``no form`` or ``rounding``, and why."""

    outcome: str
    detail: str = ""
    error: float = 0.0


class _Bundle(nn.Module):
    """Networks side by side: the inputs of all in, the outputs of all out."""

    def __init__(self, networks: Sequence[nn.Module], counts: Sequence[int]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(networks)
        self.counts = list(counts)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found: list[torch.Tensor] = []
        at = 0
        for net, count in zip(self.nets, self.counts, strict=True):
            found.extend(pytree.tree_leaves(net(*inputs[at : at + count])))
            at += count
        return tuple(found)


@contextmanager
def native_output_silenced() -> Generator[None]:
    """Keep what the exporters' C++ parts print of their own failed tries off the terminal."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(nowhere)
        os.close(kept)


def in_onnxruntime(networks: Sequence[Network], lacking: set[str]) -> list[Verdict]:
    """Export the networks in float32, and compare what onnxruntime gives with torch.

    ``lacking`` collects the ops that the exporter has no form for; networks that call one are not
    tried again.
    """
    verdicts: dict[int, Verdict] = {}
    single = [Network(_float(n.module), tuple(map(_narrow, n.inputs))) for n in networks]
    for i, network in enumerate(single):
        try:
            with torch.no_grad():
                network.module(*network.inputs)
        except RuntimeError as error:
            verdicts[i] = Verdict("no form", f"does not run in float32: {_first_line(error)}")
    _settle(
        [i for i in range(len(single)) if i not in verdicts], single, networks, lacking, verdicts
    )
    return [verdicts[i] for i in range(len(networks))]


def at_another_batch(network: Network, other: tuple[torch.Tensor, ...]) -> Verdict:
    """Export one network on its inputs, and compare what onnxruntime gives for ``other``, which
    have another batch; a network that has none must be refused there.
    """
    single = Network(_float(network.module), tuple(map(_narrow, other)))
    inputs = tuple(map(_narrow, network.inputs))
    try:
        result, free = _run_at(single, inputs)
    except Exception as error:
        return Verdict("no form", _first_line(error))
    if result is None:
        return Verdict("different", "a free batch, refused") if free else Verdict("equal")
    if not free:
        return Verdict("different", "a fixed batch, and yet another is taken")
    return _verdict(single, Network(network.module, other), result)


def _run_at(
    network: Network, inputs: tuple[torch.Tensor, ...]
) -> tuple[list[torch.Tensor] | None, bool]:
    """What the file gives, None where it refuses, and whether it says that its batch is free."""
    import onnxruntime

    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "net.onnx"
        # A file of other shapes is refused; how far its numbers are off is judged here.
        report = export(network.module, path, example_inputs=inputs, tolerance=1e9)
        session: Any = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        fed = zip(report.inputs, network.inputs, strict=True)
        try:
            found = session.run(None, {name: t.contiguous().numpy() for name, t in fed})
        except Exception:  # onnxruntime's own errors have no common class
            return None, report.free_batch
        return [torch.from_numpy(array.copy()) for array in found], report.free_batch


def _settle(
    todo: list[int],
    single: Sequence[Network],
    double: Sequence[Network],
    lacking: set[str],
    verdicts: dict[int, Verdict],
) -> None:
    """Judge the networks ``todo``, in one file if that works, else in parts."""
    for i in list(todo):
        missing = lacking & _ops(single[i].module)
        if missing:
            verdicts[i] = Verdict("no form", min(missing))
            todo.remove(i)
    if not todo:
        return
    try:
        results = _run([single[i] for i in todo])
    except Exception as error:
        text = _first_line(error)
        present = set().union(*(_ops(single[i].module) for i in todo))
        named = _MISSING.findall(text) if "No ONNX function" in text else []
        blamed = {op for op in present for name in named if op and name.startswith(op)}
        if blamed:
            lacking |= {max(blamed, key=len)}
            _settle(todo, single, double, lacking, verdicts)
            return
        if len(todo) == 1:
            verdicts[todo[0]] = Verdict("no form", text)
            return
        half = len(todo) // 2
        for part in (todo[:half], todo[half:]):
            _settle(part, single, double, lacking, verdicts)
        return
    for i, result in zip(todo, results, strict=True):
        verdicts[i] = _verdict(single[i], double[i], result)


def _run(networks: Sequence[Network]) -> list[list[torch.Tensor]]:
    """What onnxruntime gives for each network, all in one file."""
    import onnxruntime

    bundle = _Bundle([n.module for n in networks], [len(n.inputs) for n in networks]).eval()
    inputs = tuple(tensor for n in networks for tensor in n.inputs)
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "bundle.onnx"
        report = export(
            bundle, path, example_inputs=inputs, dynamic_batch=False, tolerance=math.inf
        )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session: Any = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        arrays = [tensor.contiguous().numpy() for tensor in inputs]
        flat = session.run(None, dict(zip(report.inputs, arrays, strict=True)))
    found = [torch.from_numpy(array.copy()) for array in flat]
    results: list[list[torch.Tensor]] = []
    with torch.no_grad():
        counts = [len(pytree.tree_leaves(n.module(*n.inputs))) for n in networks]
    for count in counts:
        results.append(found[:count])
        found = found[count:]
    return results


def _verdict(single: Network, double: Network, result: list[torch.Tensor]) -> Verdict:
    with torch.no_grad():
        torch32 = pytree.tree_leaves(single.module(*single.inputs))
        with double_precision():
            torch64 = pytree.tree_leaves(double.module(*double.inputs))
    error = relative_error(torch32, result)
    if error <= TOLERANCE:
        return Verdict("equal", error=error)
    rounding = relative_error(torch64, torch32)
    detail = f"differs by {error:.1e}, float32 itself by {rounding:.1e}"
    moved = sensitivity(single.module, single.inputs, 1e-7)
    if error <= 30 * rounding or error <= 10 * moved:
        return Verdict("rounding", detail, error)
    if error <= 10 * sensitivity_of_calls(single.module, single.inputs, 1e-7):
        return Verdict("rounding", detail, error)
    if orders_equal_values(single.module, single.inputs):
        return Verdict("rounding", f"{detail}; equal values have no order", error)
    return Verdict("different", detail, error)


def _ops(module: fx.GraphModule) -> set[str]:
    """Names of the ops that a graph calls, and of the kinds of its modules."""
    found: set[str] = set()
    for node in module.graph.nodes:
        if node.op == "call_function":
            found.add(op_name(node.target))
        elif node.op == "call_module":
            found.add(type(module.get_submodule(str(node.target))).__name__.lower())
    return found


def _float(module: fx.GraphModule) -> fx.GraphModule:
    """A copy in float32, also where the graph names float64."""
    single = copy.deepcopy(module).float()

    def narrow(value: Any) -> Any:
        return torch.float32 if value is torch.float64 else value

    for node in single.graph.nodes:
        node.args = pytree.tree_map(narrow, node.args)
        node.kwargs = pytree.tree_map(narrow, node.kwargs)
    single.recompile()
    return single.eval()


def _narrow(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"
