"""What a network costs: MACs, parameters, bytes; from the op table, for many subnets at once.

Every count is a sum of products of dim sizes, so it is evaluated, not measured: sizes may be NumPy
arrays with one entry a subnet. Counts are for one sample. Attention counts by its formula (two
matrix products).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from nestify.dims import Dim, Expr
from nestify.errors import UsageError
from nestify.graph.graph import Graph
from nestify.graph.liveness import PresenceDims
from nestify.graph.peak_memory import peak_changes
from nestify.graph.polynomials import Algebra, Chunk, times, total
from nestify.rules import Call, facts_of

__all__ = ["CONVENTIONS", "Column", "Convention", "Cost", "Costs", "Pricing"]

Column = npt.NDArray[Any]

_CHUNK = 8192  # subnets evaluated at once: few enough that all columns stay in cache


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of one network for one sample: ``macs`` and ``params`` are counts, sizes are bytes.

    ``activation_bytes`` is the peak of live tensors in graph order; ``latency_ms`` is None where no
    target measured or predicted it.
    """

    macs: int
    params: int
    size_bytes: int
    activation_bytes: int
    latency_ms: float | None = None

    @property
    def flops(self) -> int:
        """Two floating-point operations per MAC."""
        return 2 * self.macs


class Costs(NamedTuple):
    """Columns of :class:`Cost`, one entry a subnet."""

    macs: Column
    params: Column
    size_bytes: Column
    activation_bytes: Column
    latency_ms: Column | None = None

    def row(self, index: int) -> Cost:
        """The cost of one subnet."""
        latency = None if self.latency_ms is None else float(self.latency_ms[index])
        macs, params, size, activation = (int(column[index]) for column in self[:4])
        return Cost(macs, params, size, activation, latency)


@dataclass(frozen=True, slots=True)
class Convention:
    """What counts: each bias vector once as MACs or not, norm parameters as parameters or not."""

    bias_macs: bool
    norm_params: bool


CONVENTIONS: Mapping[str, Convention] = {
    "torch": Convention(bias_macs=False, norm_params=True),
    # Deep Roots' tables: sum(pixels * weights) + each bias vector once; BatchNorm and Scale never.
    "caffe": Convention(bias_macs=True, norm_params=False),
}


class Pricing:
    """The cost terms of one analysed graph, ready to be evaluated for many subnets.

    ``dtypes`` gives those that count in place of those of the trace, where the model was cast.

    >>> from nestify.capture.captured import capture
    >>> from nestify.graph.analysis import analyse
    >>> net = torch.nn.Linear(4, 8)
    >>> cost = Pricing(analyse(capture(net, (torch.randn(1, 4),)))).costs({}, 1).row(0)
    >>> cost.macs, cost.params
    (32, 40)
    """

    def __init__(self, graph: Graph, dtypes: Mapping[torch.dtype, torch.dtype] = {}) -> None:
        self.graph = graph
        self.algebra = Algebra()
        self.presence = PresenceDims(graph)
        volume, there = self.algebra.volume, self.presence.of
        calls = [(call, there(node)) for node, call in graph.calls.items()]
        self.loops = total(volume(loop + when) for call, when in calls for loop in call.macs)
        self.biases = total(
            volume(bias + when) for call, when in calls if call.macs and (bias := _bias(call))
        )
        norms = set(_norm_tensors(graph))
        readers = _readers(graph)
        params, scales, sizes = [], [], []
        for name, tensor in graph.capture.tensors.items():
            if name not in readers:
                continue  # an extracted network is without it
            count = volume(graph.tensor_dims[name] + there(*readers[name]))
            traced = readers[name][0].meta["val"].dtype  # the model itself may have been cast
            sizes.append(times(count, dtypes.get(traced, traced).itemsize))
            if isinstance(tensor, torch.nn.Parameter):
                (scales if name in norms else params).append(count)
        self.params, self.scales, self.sizes = total(params), total(scales), total(sizes)
        self.changes = peak_changes(graph, volume, self.presence, dtypes)

    def costs(self, sizes: Mapping[Dim, Column], count: int, convention: str = "torch") -> Costs:
        """Evaluate all counts for ``count`` subnets, whose kept sizes are the columns of ``sizes``.

        Raises:
            UsageError: an unknown convention.
        """
        rule = CONVENTIONS.get(convention)
        if rule is None:
            raise UsageError(
                f"unknown convention {convention!r}; choose from {', '.join(CONVENTIONS)}"
            )
        macs = total([self.loops, self.biases if rule.bias_macs else {}])
        params = total([self.params, self.scales if rule.norm_params else {}])
        columns = [np.empty(count, dtype=np.int64) for _ in range(4)]
        sizes = {**sizes, **self.presence.columns(sizes)}
        for start in range(0, count, _CHUNK):
            rows = slice(start, min(start + _CHUNK, count))
            cut = {d: np.asarray(s[rows], dtype=np.int64) for d, s in sizes.items()}
            chunk = Chunk(self.algebra, cut, rows.stop - start)
            for column, terms in zip(columns, (macs, params, self.sizes), strict=False):
                chunk.add(terms, column[rows], clear=True)
            chunk.peak(self.changes, columns[3][rows])
        return Costs(*columns)


def _bias(call: Call) -> tuple[Expr, ...] | None:
    return call.dims("bias")


def _readers(graph: Graph) -> dict[str, list[fx.Node]]:
    """The nodes that give each tensor to the calls."""
    found: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            found.setdefault(str(node.target), []).append(node)
    return found


def _norm_tensors(graph: Graph) -> Iterator[str]:
    for node, call in graph.calls.items():
        if facts_of(call.node.target).scales:
            yield from (str(s.target) for s in node.all_input_nodes if s.op == "get_attr")
