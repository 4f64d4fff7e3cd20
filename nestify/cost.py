"""What a network costs: MACs, parameters, bytes; from the op table, for many subnets at once.

Every count is a sum of products of dim sizes, so it is evaluated, not measured: sizes may be NumPy
arrays with one entry a subnet. Counts are for one sample. Attention counts by its formula (two
matrix products).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from nestify.dims import Dim, Expr
from nestify.errors import UsageError
from nestify.groups import Graph
from nestify.polynomials import Algebra, Chunk, Polynomial, times, total
from nestify.rules import NORMS, VIEWS, Call, Dims, op_name

__all__ = ["CONVENTIONS", "Convention", "Cost", "Costs", "Pricing"]

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

    >>> from nestify.capture import capture
    >>> from nestify.groups import analyse
    >>> net = torch.nn.Linear(4, 8)
    >>> cost = Pricing(analyse(capture(net, (torch.randn(1, 4),)))).costs({}, 1).row(0)
    >>> cost.macs, cost.params
    (32, 40)
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.algebra = Algebra()
        volume = self.algebra.volume
        calls = graph.calls.values()
        self.loops = total(volume(loop) for call in calls for loop in call.macs)
        self.biases = total(volume(bias) for call in calls if call.macs and (bias := _bias(call)))
        norms = set(_norm_tensors(graph))
        params, scales, sizes = [], [], []
        for name, tensor in graph.capture.tensors.items():
            count = volume(graph.tensor_dims[name])
            sizes.append(times(count, tensor.element_size()))
            if isinstance(tensor, torch.nn.Parameter):
                (scales if name in norms else params).append(count)
        self.params, self.scales, self.sizes = total(params), total(scales), total(sizes)
        self.changes = _peaks(graph, volume)

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


def _norm_tensors(graph: Graph) -> Iterator[str]:
    for node, call in graph.calls.items():
        if call.op in NORMS:
            yield from (str(s.target) for s in node.all_input_nodes if s.op == "get_attr")


def _peaks(graph: Graph, volume: Callable[[Dims], Polynomial]) -> list[Polynomial]:
    """How the bytes of live tensors change from one moment that may be the peak to the next.

    A tensor lives from the node that makes it to the last node that reads it. Of two moments only
    the later may be the peak where no size shrinks between them, only the earlier where none grows.
    """
    changes: list[Polynomial] = []
    change: Polynomial = {}
    for born, dead in _storages(graph):
        change = total([change, *(times(volume(dims), width) for dims, width in born)])
        if any(share > 0 for share in change.values()):
            if changes and all(share > 0 for share in change.values()):
                change = total([changes.pop(), change])
            changes.append(change)
            change = {}
        change = total([change, *(times(volume(dims), -width) for dims, width in dead)])
    return changes


Storage = tuple[Dims, int]


def _storages(graph: Graph) -> list[tuple[list[Storage], list[Storage]]]:
    """For each activation node in order: the storages born there, and those last read there."""
    root: dict[fx.Node, fx.Node] = {}
    last: dict[fx.Node, int] = {}
    nodes = [n for n in graph.nodes if n.op != "get_attr"]
    for i, node in enumerate(nodes):
        root[node] = _storage_root(node, root)
        last[root[node]] = i
        for source in node.all_input_nodes:
            if source.op != "get_attr":
                last[root[source]] = i
    moments: list[tuple[list[Storage], list[Storage]]] = [([], []) for _ in nodes]
    for i, node in enumerate(nodes):
        if node.op == "output" or root[node] is not node:
            continue
        for storage in _tensors_of(graph, node):
            moments[i][0].append(storage)
            moments[last[node]][1].append(storage)
    return moments


def _storage_root(node: fx.Node, root: Mapping[fx.Node, fx.Node]) -> fx.Node:
    """The node whose memory this one shares: itself, or the base of a view or in-place op."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
        return node
    mutates = getattr(getattr(node.target, "_schema", None), "is_mutable", False)
    if node.args[0] in root and (mutates or op_name(node.target) in VIEWS):
        return root[node.args[0]]
    return node


def _tensors_of(graph: Graph, node: fx.Node) -> list[Storage]:
    val, dims = node.meta["val"], graph.dims[node]
    pairs = zip(val, dims, strict=False) if isinstance(val, list | tuple) else [(val, dims)]
    return [(d, v.element_size()) for v, d in pairs if isinstance(v, torch.Tensor)]
