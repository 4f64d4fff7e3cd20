"""What a network costs: MACs, parameters, bytes; from the op table, for any number of subnets at once.

Every count is a sum of products of dim sizes, so it is evaluated, not measured: sizes may be NumPy arrays
with one entry a subnet. Counts are for one sample. Attention counts by its formula (two matrix products).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from nestify.dims import Dim, Expr
from nestify.errors import UsageError
from nestify.groups import Graph
from nestify.rules import NORMS, VIEWS, Call, op_name
from nestify.slicing import kept_size

__all__ = ["CONVENTIONS", "Convention", "Cost", "Costs", "Pricing"]

Column = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of one network for one sample: ``macs`` and ``params`` are counts, sizes are bytes.

    ``activation_bytes`` is the peak of live tensors in graph order; ``latency_ms`` is None where no target
    measured or predicted it.
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
        latency = None if self.latency_ms is None else float(self.latency_ms[index])
        return Cost(*(int(column[index]) for column in self[:4]), latency)


@dataclass(frozen=True, slots=True)
class Convention:
    """What counts: each bias vector once as MACs or not at all, norm parameters as parameters or not."""

    bias_macs: bool
    norm_params: bool


CONVENTIONS: Mapping[str, Convention] = {
    "torch": Convention(bias_macs=False, norm_params=True),
    # Deep Roots' tables: sum(pixels * weights) + each bias vector once; BatchNorm and Scale never counted.
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
        calls = graph.calls
        self.loops = [loop for call in calls.values() for loop in call.macs]
        self.biases = [dims for call in calls.values() if call.macs and (dims := _bias(call))]
        norm_tensors = {
            str(source.target)
            for node, call in calls.items()
            if call.op in NORMS
            for source in node.all_input_nodes
            if source.op == "get_attr"
        }
        self.tensors = [
            (
                graph.tensor_dims[name],
                tensor.element_size(),
                isinstance(tensor, torch.nn.Parameter),
                name in norm_tensors,
            )
            for name, tensor in graph.capture.tensors.items()
        ]
        self.storages = _storages(graph)

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
        at: dict[Dim, Any] = dict(sizes)
        if self.graph.batch is not None:
            at[self.graph.batch] = 1
        macs = _total((_volume(loop, at) for loop in self.loops), count)
        if rule.bias_macs:
            macs += _total((_volume(dims, at) for dims in self.biases), count)
        params = _total(
            (
                _volume(d, at)
                for d, _, is_param, is_norm in self.tensors
                if is_param and (rule.norm_params or not is_norm)
            ),
            count,
        )
        size = _total((_volume(dims, at) * width for dims, width, _, _ in self.tensors), count)
        return Costs(macs, params, size, self._peak(at, count))

    def _peak(self, at: Mapping[Dim, Any], count: int) -> Column:
        """Largest sum of live storages over time."""
        live = np.zeros(count, dtype=np.int64)
        peak = live.copy()
        for born, dead in self.storages:
            live = live + sum(_volume(dims, at) * width for dims, width in born)
            np.maximum(peak, live, out=peak)
            live = live - sum(_volume(dims, at) * width for dims, width in dead)
        return peak


def _volume(dims: tuple[Expr, ...], at: Mapping[Dim, Any]) -> Any:
    total: Any = 1
    for expr in dims:
        total = total * kept_size(expr, at)
    return total


def _total(terms: Any, count: int) -> Column:
    total = np.zeros(count, dtype=np.int64)
    for term in terms:
        total += term
    return total


def _bias(call: Call) -> tuple[Expr, ...] | None:
    return call.dims("bias")


Storage = tuple[tuple[Expr, ...], int]


def _storages(graph: Graph) -> list[tuple[list[Storage], list[Storage]]]:
    """For each activation node in order: the storages born there and those read for the last time."""
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
