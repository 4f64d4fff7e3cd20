"""Room for odd sizes: what a training step may compute with zeros beside, because it is cheaper so.

Convolution kernels work on 16 channels at a time, and oneDNN compiles a new kernel for every new
size: a step with 77 channels costs as much as one with 80, and a draw that never came before costs
the compilation on top. So in training a convolution with 77 drawn channels runs on 80, three of
them made of zero weights. A channel of zeros adds nothing to what reads it, and gets no gradient:
the result is that of 77. This holds where the table says so of every op that the dim meets.

Matrices in float32 have no such kernels, and zeros would only cost; in 16 bits they have.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import fx
from torch.utils import _pytree as pytree

from nestify.dims import Dim, Expr, all_dims
from nestify.dims.selection import Keep
from nestify.graph.graph import Graph
from nestify.rules import Call, Op, facts_of

__all__ = ["Room"]

_LANES = 16
_NARROW = 8  # a convolution of so few channels is cheaper as it is, zeros and turned maps cost more
_SIZES = 16  # of a dim, at most: each is compiled once


class Room:
    """The dims of a graph that may be padded with zeros, and to which multiples.

    Attributes:
        quanta: of dims that convolutions meet.
        matrix_quanta: of other dims that linear layers meet.
        convolves_wide: whether some convolution is wide enough to gain by this.

    >>> import torch
    >>> from nestify.capture.captured import capture
    >>> from nestify.graph.analysis import analyse
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 64, 3), torch.nn.Conv2d(64, 4, 3))
    >>> graph = analyse(capture(net, (torch.randn(1, 3, 8, 8),)))
    >>> dim = graph.groups[0].dim
    >>> Room(graph).padded(Keep({dim: 37})).size(dim)
    48
    """

    def __init__(self, graph: Graph) -> None:
        barred = _barred(graph)
        convolved = _met(graph, lambda op: op.slides)
        multiplied = _met(graph, lambda op: op.layer is not None and not op.slides)
        self.convolves_wide = any(d.size > _NARROW for d in convolved if not d.batch)
        self.quanta = {d: _quantum(d.size) for d in convolved - barred if d.size > _NARROW}
        self.matrix_quanta = {dim: _quantum(dim.size) for dim in multiplied - convolved - barred}

    def padded(self, keep: Keep, *, half: bool = False) -> Keep:
        """The same with more room where it is cheaper; ``keep`` itself where there is none.

        ``half``: the matrices are multiplied in 16 bits.
        """
        sizes = dict(keep.sizes)
        quanta = self.quanta | self.matrix_quanta if half else self.quanta
        for dim, quantum in quanta.items():
            size = sizes.get(dim)
            if size is not None and dim not in keep.picks:
                sizes[dim] = min(dim.size, math.ceil(size / quantum) * quantum)
        return keep if sizes == keep.sizes else Keep(sizes, keep.picks)


def _quantum(size: int) -> int:
    return _LANES * math.ceil(size / (_LANES * _SIZES))


def _met(graph: Graph, chosen: Callable[[Op], bool]) -> set[Dim]:
    """The dims that some call of the ops ``chosen`` reads or makes."""
    met = {
        place
        for node in graph.calls
        if chosen(facts_of(node.target))
        for place in (node, *node.all_input_nodes)
    }
    return all_dims(_exprs([graph.dims[node] for node in met]))


def _barred(graph: Graph) -> set[Dim]:
    """Dims that stand with others somewhere, or meet an op that zeros could disturb."""
    loud = {
        place
        for node, call in graph.calls.items()
        if not _is_quiet(call)
        for place in (node, *node.all_input_nodes)
    }
    barred = all_dims(_exprs([*graph.tensor_dims.values(), *graph.dims.values()]), inside=True)
    barred |= all_dims(_exprs([graph.dims[node] for node in loud]))
    barred |= all_dims(_exprs([call.normalised for call in graph.calls.values()]))
    return barred | {dim for dim in all_dims(_exprs(list(graph.dims.values()))) if dim.batch}


def _exprs(dims: Any) -> list[Expr]:
    return pytree.tree_leaves(dims)


def _is_quiet(call: Call) -> bool:
    """Whether channels of zeros stay finite here and leave the others alone."""
    if not facts_of(call.node.target).zero_safe:
        return False
    weight, eps = call.args.get("weight"), call.args.get("eps")
    own = not isinstance(weight, fx.Node) or weight.op == "get_attr"
    return own and (eps is None or eps > 0)
