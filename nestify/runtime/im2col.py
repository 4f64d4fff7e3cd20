"""The rows of the linear problem that a layer is: what a filter reads at a position."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from nestify.rules import bind_arguments, facts_of, shape_of

__all__ = ["Window", "by_group", "sampled"]

_ROWS = 20_000  # positions of a layer that are looked at, over all batches


class Window:
    """How a call of a convolution (or a linear layer: one tap) reads its input.

    >>> import nestify
    >>> net = torch.nn.Conv2d(3, 5, 3, stride=2, padding=1)
    >>> graph = nestify.trace(net, torch.randn(1, 3, 8, 8))
    >>> window = Window(next(iter(graph.calls)))
    >>> window.taps, window.rows(torch.randn(2, 3, 8, 8), torch.tensor([0, 31])).shape
    (9, torch.Size([2, 3, 9]))
    """

    def __init__(self, node: fx.Node) -> None:
        bound = bind_arguments(node)
        convolves = facts_of(node.target).slides
        self.kernel = tuple(map(int, shape_of(bound["weight"])[2:])) if convolves else ()
        self.rank = len(self.kernel)
        self.stride = _spread(bound.get("stride", 1), self.rank)
        self.dilation = _spread(bound.get("dilation", 1), self.rank)
        self.padding = self._margins(bound.get("padding", 0))

    @property
    def taps(self) -> int:
        """How many positions of a channel one output reads."""
        return torch.Size(self.kernel).numel()

    @property
    def centre(self) -> int:
        """The tap in the middle of the window."""
        place = 0
        for size in self.kernel:
            place = place * size + size // 2
        return place

    def rows(self, x: Tensor, chosen: Tensor) -> Tensor:
        """What the ``chosen`` output positions read: (positions, channels, taps).

        Positions are counted over images and then over the output map.
        """
        if not self.rank:
            return self.outputs(x, chosen)[:, :, None]
        margins = [m for pair in reversed(self.padding) for m in pair]
        x = F.pad(x, margins)
        taps: list[Tensor] = []
        for offsets in product(*(range(k) for k in self.kernel)):
            seen = x
            for dim, (at, step, gap) in enumerate(
                zip(offsets, self.stride, self.dilation, strict=True), start=2
            ):
                reach = gap * (self.kernel[dim - 2] - 1)
                size = (x.shape[dim] - reach - 1) // step + 1
                first = at * gap
                seen = seen.narrow(dim, first, (size - 1) * step + 1)
                seen = seen[(slice(None),) * dim + (slice(None, None, step),)]
            taps.append(self.outputs(seen, chosen))
        return torch.stack(taps, 2)

    def outputs(self, y: Tensor, chosen: Tensor) -> Tensor:
        """The ``chosen`` positions of the layer's output, (positions, channels)."""
        if not self.rank:
            return y.reshape(-1, y.shape[-1])[chosen]
        return y.flatten(2).movedim(1, 2).flatten(0, 1)[chosen]

    def positions(self, y: Tensor) -> int:
        """How many positions an output has in all images."""
        return y.numel() // max(1, y.shape[1] if self.rank else y.shape[-1])

    def _margins(self, padding: Any) -> list[tuple[int, int]]:
        if padding == "valid":
            return [(0, 0)] * self.rank
        if padding == "same":
            reach = [d * (k - 1) for d, k in zip(self.dilation, self.kernel, strict=True)]
            return [(r // 2, r - r // 2) for r in reach]
        return [(p, p) for p in _spread(padding, self.rank)]


def _spread(value: Any, rank: int) -> tuple[int, ...]:
    values: Sequence[int] = value if isinstance(value, list | tuple) else (value,)
    return tuple(values) * (rank // len(values)) if len(values) < rank else tuple(values)


def sampled(
    window: Window, args: Sequence[list[Any]], outputs: Sequence[Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows and outputs at random positions of each batch, in order; the same ones for as many."""
    for (x, *_), y in zip(args, outputs, strict=True):
        count = window.positions(y)
        draw = torch.Generator().manual_seed(count)
        most = max(1, _ROWS // len(outputs))
        places = torch.randperm(count, generator=draw)[:most].sort().values
        chosen = places if count > most else torch.arange(count)
        yield window.rows(x, chosen), window.outputs(y, chosen)


def by_group(values: Tensor, groups: int) -> Tensor:
    """Values (positions, channels, ...) as (groups, positions, channels of a group, ...)."""
    return values.unflatten(1, (groups, -1)).movedim(1, 0)
