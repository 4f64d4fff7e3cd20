"""Gates: what a loss would change by, to first order, if positions were absent, sample by sample.

Where an op sums over an elastic dim its operand is multiplied by ones, one a sample and position.
The derivative with respect to such a one is the sum of g * a over what it multiplies, which equals
the sum of g * w over the weights that read the position (Molchanov et al., 2019), yet is known for
each sample from one backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from nestify.capture.source_lines import source_line
from nestify.dims import Dim, dims_of
from nestify.dims.selection import Keep
from nestify.errors import UsageError
from nestify.graph.contractions import Reading, along, readings
from nestify.graph.graph import Graph
from nestify.rules import op_name
from nestify.runtime.lockstep import change_operand, holder
from nestify.runtime.program import Program

__all__ = ["Gates"]

Objective = Callable[[Any], Tensor | None]


class Gates:
    """Runs ``graph`` in eval with a gate at every place where a Dim is read."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._root = holder(graph)
        self._program = Program(graph)
        self._readings: dict[fx.Node, list[Reading]] = {}
        for reading in readings(graph):
            self._readings.setdefault(reading.call, []).append(reading)

    def derivatives(self, flat: list[Any], objective: Objective) -> dict[Dim, Tensor]:
        """Derivatives of what ``objective`` makes of the outputs by Dim, (samples, positions), in
        float64; a Dim that has no part in it is left out.
        """
        batch = self._program.batch_size(flat)
        bound = self._program.bind(Keep({}), batch)
        walk = self._program.walk(self._root, bound, list(flat))
        gates: list[tuple[Reading, Tensor]] = []
        node: fx.Node | None = None
        # What a later call overwrites is needed as it was: in a model that runs, no fault.
        with torch.enable_grad(), torch.autograd.graph.allow_mutation_on_saved_tensors():
            while True:
                try:
                    node, args, kwargs = next(walk)
                except StopIteration as done:
                    outputs: list[Any] = done.value
                    break
                except RuntimeError as error:
                    raise UsageError(_not_recorded(node, error)) from error
                for reading in self._readings.get(node, ()):
                    gates.append((reading, self._close(reading, node, args, kwargs)))
            scalar = objective(pytree.tree_unflatten(outputs, self.graph.capture.out_spec))
            if scalar is None or not gates:
                return {}
            ones = [gate for _, gate in gates]
            slopes = torch.autograd.grad(scalar, ones, allow_unused=True)
        found = cast(Sequence[Tensor | None], slopes)
        pairs = [(r, g) for (r, _), g in zip(gates, found, strict=True) if g is not None]
        return self._summed(pairs, bound.keep, batch)

    def _close(
        self, reading: Reading, node: fx.Node, args: list[Any], kwargs: dict[str, Any]
    ) -> Tensor:
        """Multiply the operand of a call by a new gate; returns the gate."""
        gates: list[Tensor] = []

        def gated(value: Tensor) -> Tensor:
            if not gates:
                wide = {self._sample_dim(reading), reading.position}
                shape = [n if i in wide else 1 for i, n in enumerate(value.shape)]
                one = torch.ones(shape, dtype=value.dtype.to_real(), device=value.device)
                gates.append(one.requires_grad_())
            return value * gates[0]

        args[:], changed = change_operand(node, reading.source, args, kwargs, gated)
        kwargs.update(changed)
        return gates[0]

    def _sample_dim(self, reading: Reading) -> int | None:
        """The dim of an operand along which samples lie, if they lie along one."""
        batch = self.graph.batch
        found = [
            position
            for position, expr in enumerate(self.graph.dims[reading.source])
            if batch is not None and batch in dims_of(expr)
        ]
        return found[0] if len(found) == 1 and found[0] != reading.position else None

    def _summed(
        self, found: Sequence[tuple[Reading, Tensor]], keep: Keep, batch: int
    ) -> dict[Dim, Tensor]:
        total: dict[Dim, Tensor] = {}
        for reading, gradient in found:
            dims = self.graph.dims[reading.source]
            rows = _rows(gradient.double(), dims, self._sample_dim(reading), reading, keep)
            if len(rows) == 1 and batch > 1:  # known for the batch as a whole
                rows = rows.expand(batch, -1) / batch
            for dim, sums in along(rows, dims[reading.position], keep.size):
                if dim in reading.dims:
                    total[dim] = total[dim] + sums if dim in total else sums
        return total


def _not_recorded(node: fx.Node | None, error: RuntimeError) -> str:
    line = source_line(node) if node is not None else ""
    call = f"call {op_name(node.target)}{f' at {line}' if line else ''}" if node else "the model"
    said = str(error).strip().partition("\n")[0]
    return (
        f"importance by gradients: {call} fails on calibration data where gradients are recorded "
        f"({said}); change that line, or rank by activation or magnitude"
    )


def _rows(gradient: Tensor, dims: Any, sample: int | None, reading: Reading, keep: Keep) -> Tensor:
    """The gradient of a gate as (samples, positions)."""
    if sample is None:
        return gradient.reshape(1, -1)
    order = [sample, reading.position]
    rows = gradient.permute(*order, *(i for i in range(gradient.ndim) if i not in order))
    rows = rows.reshape(rows.shape[:2]).T
    (samples,) = [s for dim, s in along(rows, dims[sample], keep.size) if dim.batch]
    return samples.T
