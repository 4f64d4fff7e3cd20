"""How much each position of each elastic dim matters, over all the places where it lives.

``magnitude``   size of the weights that make a position, times size of those that read it
``activation``  energy that a position adds to the sums of the ops that read it
``taylor``      mean over samples of |sum of g * w|: the change of the loss to first order
``hessian``     the change to second order with an empirical Fisher matrix, within a dim as a
                whole, so that of positions that do the same one stays (:mod:`~.elimination`)

The first two are relative to the mean of their dim; the last two are in units of the loss, a
sample, and can be compared between dims.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from nestify.capture.batches import flat_batches
from nestify.dims import Dim, dims_of
from nestify.errors import UsageError
from nestify.graph.contractions import Reading, along, readings, weights_read
from nestify.graph.graph import Graph
from nestify.passes.ranking.objectives import Loss, batch_loss, labels_of, loss_name
from nestify.passes.ranking.presence_gradients import Gates
from nestify.passes.ranking.removal_order import Rows, eliminate
from nestify.runtime.lockstep import Walk
from nestify.support.arguments import check, one_of

__all__ = ["METHODS", "Importance", "Score", "measure"]

METHODS = ("auto", "magnitude", "activation", "taylor", "hessian")
_TINY = torch.finfo(torch.float64).tiny


class Score(NamedTuple):
    """Importance of each position of a dim (float64), and the positions, the best first."""

    values: Tensor
    order: Tensor


@dataclass(frozen=True, slots=True)
class Importance:
    """Scores by group name, and how they were measured, in words."""

    by: str
    how: str
    scores: Mapping[str, Score]


def measure(
    graph: Graph, by: str, calibration: Iterable[Any] | None, loss: Loss | None = None
) -> Importance:
    """Importance of every position of every group of ``graph``.

    ``auto`` is ``hessian`` where there is calibration data, and ``magnitude`` without.

    Raises:
        UsageError: a way that needs calibration data without any, data or labels that do not fit
            the model, or an importance that is no finite number.
    """
    check("importance", {"by": by}, {"by": one_of(*METHODS)})
    if by == "auto":
        by = "magnitude" if calibration is None else "hessian"
    if any(tensor.is_meta for tensor in graph.capture.tensors.values()):
        raise UsageError("the model is on the meta device: weights without values have no rank")
    if by == "magnitude":
        values, how = _magnitude(graph), "magnitude"
    elif calibration is None:
        raise UsageError(
            f"rank by {by} needs data: pass calibration=batches, of inputs or (inputs, labels), "
            "or use by=magnitude, which needs none"
        )
    else:
        batches = list(calibration)
        flat = flat_batches(graph.capture, batches)
        how = f"{by} on {len(batches)} batch{'es' * (len(batches) != 1)}"
        if by == "activation":
            values = _activation(graph, flat)
        else:
            labels = [labels_of(batch) for batch in batches]
            how += f", loss: {loss_name(labels[0], loss)}"
            collect = _first_order if by == "taylor" else _second_order
            values = collect(graph, list(zip(flat, labels, strict=True)), loss)
    return Importance(by, how, _by_name(graph, by, values))


def _by_name(graph: Graph, by: str, values: Mapping[Dim, Score]) -> dict[str, Score]:
    found: dict[str, Score] = {}
    for group in graph.groups:
        nothing = Score(torch.zeros(group.size).double(), torch.arange(group.size))
        score = values.get(group.dim, nothing)  # what no op reads does not matter
        wrong = score.values[~score.values.isfinite()]
        if len(wrong):
            raise UsageError(
                f"importance by {by} is {float(wrong[0])} in group {group.name!r}: a weight, an "
                "activation or the loss is no finite number; run the model on the calibration "
                "batches and look"
            )
        found[group.name] = Score(score.values.cpu(), score.order.cpu())
    return found


def _ordered(values: Tensor) -> Score:
    return Score(values, values.argsort(descending=True, stable=True))


# --- from weights alone ---------------------------------------------------------------------------


def _magnitude(graph: Graph) -> dict[Dim, Score]:
    """Makers times readers: a product, because scaling a layer up and the next one down changes
    nothing. Norms and biases count only where a dim has no weight: in front of a norm the size of a
    weight says nothing, and behind it its scale says no more than the weights that read it.
    """
    readers = weights_read(graph)
    sides: dict[Dim, tuple[list[Tensor], list[Tensor], list[Tensor]]] = {}
    for name, tensor in graph.parameters():
        if not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        for position, expr in enumerate(graph.tensor_dims[name]):
            if not any(True for _ in dims_of(expr)):
                continue
            for dim, sums in along(_energy(tensor.detach(), position), expr, _full):
                side = 2 if tensor.ndim < 2 else int((name, position, dim) in readers)
                sides.setdefault(dim, ([], [], []))[side].append(_relative(sums))
    found: dict[Dim, Score] = {}
    for dim, (makers, readings_of, vectors) in sides.items():
        parts = [torch.stack(part).mean(0) for part in (makers, readings_of) if part]
        parts = parts or [torch.stack(vectors).mean(0)]
        found[dim] = _ordered(_relative(torch.stack(parts).prod(0).sqrt()))
    return found


def _energy(values: Tensor, position: int) -> Tensor:
    """Squares summed over all dims but one."""
    real = values.abs() if values.is_complex() else values
    return real.double().square().movedim(position, 0).reshape(values.shape[position], -1).sum(1)


def _relative(values: Tensor) -> Tensor:
    return values / values.mean().clamp_min(_TINY)


def _full(expr: Any) -> int:
    return expr.size


# --- from data ------------------------------------------------------------------------------------


def _activation(graph: Graph, flat: Sequence[list[Any]]) -> dict[Dim, Score]:
    """Energy of each operand where it is read, times that of the weights it is multiplied by."""
    by_call: dict[fx.Node, list[Reading]] = {}
    for reading in readings(graph):
        by_call.setdefault(reading.call, []).append(reading)
    weights = {name: tensor.detach() for name, tensor in graph.parameters()}
    found: dict[Dim, list[Tensor]] = {}
    for stop in Walk.of(graph, flat).stops():
        for reading in by_call.get(stop.node, ()):
            values = stop.values(reading.source)
            if not (values[0].is_floating_point() or values[0].is_complex()):
                continue
            energy = sum((_energy(x, reading.position) for x in values), torch.zeros(()))
            dims = graph.dims[reading.source][reading.position]
            for source, position in graph.calls[stop.node].contracted:
                weight = weights.get(str(source.target)) if source.op == "get_attr" else None
                if weight is None or source is reading.source:
                    continue
                read = _energy(weight, position)
                if energy.numel() % read.numel() == 0:  # of grouped layers, one group's inputs
                    energy = (energy.reshape(-1, read.numel()) * read).flatten()
            for dim, sums in along(energy, dims, _full):
                if dim in reading.dims:
                    found.setdefault(dim, []).append(_relative(sums))
    return {dim: _ordered(torch.stack(parts).mean(0)) for dim, parts in found.items()}


Labelled = Sequence[tuple[list[Any], Any]]


def _derivatives(
    graph: Graph, data: Labelled, loss: Loss | None, take: Callable[[Dim, Tensor], None]
) -> None:
    gates, draw = Gates(graph), torch.Generator().manual_seed(0)
    for flat, labels in data:

        def objective(outputs: Any, labels: Any = labels) -> Tensor | None:
            return batch_loss(outputs, labels, loss, draw)

        for dim, rows in gates.derivatives(flat, objective).items():
            take(dim, rows)


def _first_order(graph: Graph, data: Labelled, loss: Loss | None) -> dict[Dim, Score]:
    sums: dict[Dim, Tensor] = {}
    counts: dict[Dim, int] = {}

    def take(dim: Dim, rows: Tensor) -> None:
        sums[dim] = sums.get(dim, 0) + rows.abs().sum(0)
        counts[dim] = counts.get(dim, 0) + len(rows)

    _derivatives(graph, data, loss, take)
    return {dim: _ordered(total / counts[dim]) for dim, total in sums.items()}


def _second_order(graph: Graph, data: Labelled, loss: Loss | None) -> dict[Dim, Score]:
    found: dict[Dim, Rows] = {}

    def take(dim: Dim, rows: Tensor) -> None:
        found.setdefault(dim, Rows()).add(rows)

    _derivatives(graph, data, loss, take)
    return {dim: Score(*eliminate(rows.rows)) for dim, rows in found.items()}
