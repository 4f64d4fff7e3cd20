"""Maps with their channels last, where convolutions are cheaper so, and the calls that need others.

oneDNN turns other maps into a layout of its own and back around every convolution, which costs the
more the narrower the layers are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from nestify.rules import facts_of, is_mutable

__all__ = [
    "Orders",
    "channels_last",
    "contiguous",
    "is_contiguous_map",
    "merged_groups",
    "orders_in",
    "run_in_order",
]

Orders = Mapping[fx.Node, list[int]]  # of the dims of values in memory, the slowest first
_LANES = 8
_WIDE, _WIDEST = 24, 32  # channels of a merged group: best at most, and where all go into one


def is_contiguous_map(value: Any) -> bool:
    """Whether this is a map on a CPU that would be turned."""
    return (
        isinstance(value, torch.Tensor)
        and value.ndim == 4
        and value.device.type == "cpu"
        and value.is_contiguous()
    )


def channels_last(value: Any) -> Any:
    """A map with its channels last; what is no map as it is.

    One channel, or one place, lies the same way in both orders. Torch takes that for channels first
    unless the strides say otherwise, and all layers behind would run so.

    >>> channels_last(torch.ones(2, 1, 8, 8)).stride()
    (64, 1, 8, 1)
    """
    if not _is_map(value):
        return value
    laid = value.contiguous(memory_format=torch.channels_last)
    if not laid.is_contiguous():
        return laid
    rows, channels, height, width = laid.shape
    return laid.view(rows, height, width, channels).permute(0, 3, 1, 2)


def contiguous(value: Any) -> Any:
    """A map with its channels first again, by its strides too; what is no map as it is."""
    if not _is_map(value):
        return value
    laid = value.contiguous()
    _, channels, height, width = laid.shape
    first = (channels * height * width, height * width, width, 1)
    return laid if laid.stride() == first else laid.view(-1).view(laid.shape)


def merged_groups(weight: torch.Tensor, groups: int) -> tuple[torch.Tensor, int]:
    """The weight and the groups to run a convolution on maps with their channels last.

    Kernels work on 8 channels of a group at once. Where groups are narrower, several in one with
    zeros between them take less time; others are handed back, and depthwise ones, which have
    kernels of their own.

    >>> weight, groups = merged_groups(torch.ones(16, 2, 3, 3), 8)
    >>> weight.shape, groups, int(weight.sum())
    (torch.Size([16, 16, 3, 3]), 1, 288)
    """
    outputs, inputs, *kernel = weight.shape
    fit = [n for n in range(2, _WIDE // inputs + 1) if groups % n == 0]
    if not fit and 1 < groups <= _WIDEST // inputs:
        fit = [groups]
    if not fit or inputs >= _LANES or (inputs == 1 and outputs == groups):
        return weight, groups
    each, left = fit[-1], groups // fit[-1]
    blocks = weight.reshape(left, each, outputs // groups, inputs, *kernel)
    made = weight.new_zeros(left, each, outputs // groups, each, inputs, *kernel)
    made.diagonal(dim1=1, dim2=3).copy_(blocks.movedim(1, -1))
    return channels_last(made.view(outputs, each * inputs, *kernel)), left


def _is_map(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim == 4


def _as_traced(value: Any, source: Any, orders: Orders) -> Any:
    """A tensor in the order in which the trace had the value of ``source`` in memory: a map with
    its channels first, its positions as tokens with these last.
    """
    if not (isinstance(value, torch.Tensor) and isinstance(source, fx.Node)):
        return value
    order = orders[source]
    if order == list(range(value.ndim)):
        return contiguous(value) if _is_map(value) else value.contiguous()
    laid = value.permute(order)
    if laid.is_contiguous():
        return value
    return laid.contiguous().permute([order.index(dim) for dim in range(value.ndim)])


def orders_in(graph: fx.Graph) -> dict[fx.Node, Orders]:
    """The calls that give something else, or refuse, where channels are last in memory, each with
    the order of dims in memory that the trace had for each of its operands, the slowest first.
    """
    calls = [node for node in graph.nodes if node.op == "call_function"]
    return {
        node: {source: _order(source) for source in node.all_input_nodes}
        for node in calls
        if facts_of(node.target).memory_order
    }


def _order(source: fx.Node) -> list[int]:
    value = source.meta["val"]
    if not isinstance(value, torch.Tensor):
        return []
    strides = torch.empty_like(value).stride()  # dense, where that was expanded
    return sorted(range(value.ndim), key=lambda dim: -strides[dim])


def run_in_order(
    node: fx.Node,
    orders: Orders,
    run: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Any:
    """Run a call on operands in the memory order of the trace; what it writes ends up where it
    should.
    """
    named = kwargs.items()
    kwargs = {name: _as_traced(arg, node.kwargs.get(name), orders) for name, arg in named}
    given = [_as_traced(arg, source, orders) for arg, source in zip(args, node.args, strict=True)]
    if is_mutable(node):
        target, (laid, *others) = args[0], given
        # Itself where memory has that order: torch must see the write, whatever the strides say.
        written = target if laid.data_ptr() == target.data_ptr() else laid
        run(written, *others, **kwargs)
        return target if written is target else target.copy_(written)
    found = run(*given, **kwargs)
    for value in found if isinstance(found, list | tuple) else [found]:
        if _is_map(value) and value.requires_grad:
            value.register_hook(contiguous)  # what comes back need not lie as what was given
    return found
