"""Choosing the blocks of each convolution from calibration data, and the order of its channels.

Candidates are the channels as they stand, blocks by the energy of the kernel (what each input
channel adds to each filter), and blocks by the whitened covariance of the inputs and outputs (Deep
Roots, A.2). The one whose least-squares fit leaves the least output error is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from nestify.dims import Dim, resolve
from nestify.graph.graph import Graph
from nestify.passes.deep_roots.partition import Partition, equal_blocks, free_blocks, in_order
from nestify.passes.deep_roots.spatial import Spatial
from nestify.runtime.im2col import Window, sampled
from nestify.runtime.lockstep import Walk
from nestify.support.covariance import Moments, zca
from nestify.support.least_squares import unexplained

__all__ = ["Choice", "Layout", "choose_blocks"]


@dataclass(frozen=True, slots=True)
class Choice:
    """The blocks of one convolution, in the channel order of the permuted network.

    ``error`` is what a fit on these blocks leaves of the layer's output (relative, 2-norm), and
    ``plain_error`` what the blocks of the kernel as it stood would leave. ``rows`` positions of
    the calibration data were seen, for at most ``unknowns`` weights of a filter.
    """

    sizes: tuple[tuple[int, int], ...]
    error: float
    plain_error: float
    rows: int
    unknowns: int


@dataclass
class Layout:
    """The order of channels that has been chosen so far, dim by dim."""

    orders: dict[Dim, Tensor] = field(default_factory=dict[Dim, Tensor])

    def of(self, expr: Any, size: int) -> tuple[Dim | None, Tensor, bool]:
        """The dim of these channels, their present order, and whether it may still be changed."""
        dim = resolve(expr)
        if not isinstance(dim, Dim) or dim.batch or dim.size != size:
            return None, torch.arange(size), False
        return dim, self.orders.get(dim, torch.arange(size)), dim not in self.orders


def choose_blocks(
    graph: Graph,
    plan: Mapping[Spatial, int],
    batches: Sequence[list[Any]],
    *,
    free: bool,
) -> tuple[dict[str, Choice], Layout]:
    """The blocks of every convolution of ``plan`` (its number of groups), by its weight's name."""
    by_node = {conv.nodes[-1]: conv for conv in plan}
    moments = {conv.weight: Moments() for conv in plan}
    owner = {node: conv for conv in plan for node in conv.nodes}
    layout, chosen = Layout(), dict[str, Choice]()
    for stop in Walk.of(graph, batches).stops():
        conv = owner.get(stop.node)
        if conv is None:
            continue
        window = Window(stop.node)
        for rows, _ in sampled(window, stop.args, stop.outputs()):
            moments[conv.weight].add(rows.flatten(1))
        if stop.node in by_node:
            found = moments.pop(conv.weight)
            problem = _Problem(graph, conv, window, found, plan[conv], layout)
            chosen[conv.weight] = problem.choose(free=free)
    return chosen, layout


class _Problem:
    """One convolution: its kernel, the second moments of what it reads, which dims may move.

    Blocks are chosen one channel at a time, so all of this lies on the CPU.
    """

    def __init__(
        self,
        graph: Graph,
        conv: Spatial,
        window: Window,
        moments: Moments,
        groups: int,
        layout: Layout,
    ) -> None:
        node = conv.nodes[0]
        call = graph.calls[node]
        self.conv, self.groups, self.taps, self.layout = conv, groups, window.taps, layout
        self.centre = window.centre
        self.weight = graph.capture.tensors[conv.weight].detach().double().flatten(1).cpu()
        self.rows = moments.count
        self.second = moments.covariance.cpu()
        if not isinstance(call.args.get("bias"), fx.Node):
            mean = moments.mean.cpu()
            self.second = self.second + torch.outer(mean, mean)
        self.input = layout.of(call.need("input")[1], conv.inputs)
        self.output = layout.of(graph.dims[node][1], conv.outputs)
        self.total = float(((self.weight @ self.second) * self.weight).sum())

    def choose(self, *, free: bool) -> Choice:
        """Take the best candidate, and note the order of channels that it needs."""
        plain = in_order(self.conv.outputs, self.conv.inputs, self.groups)
        best = min(self._candidates(plain, free=free), key=self._error)
        best = best.by_size() if self._movable else best
        self._note(self.input, best.inputs)
        self._note(self.output, best.outputs)
        unknowns = max(inputs for _, inputs in best.sizes) * self.taps
        return Choice(
            best.sizes, self._error(best), self._extraction_error(plain), self.rows, unknowns
        )

    @property
    def _movable(self) -> bool:
        return self.input[2] and self.output[2] and self.input[0] is not self.output[0]

    def _candidates(self, plain: Partition, *, free: bool) -> Iterator[Partition]:
        yield plain
        for energy in (self._kernel_energy(), self._covariance_energy()):
            ordered = energy[self.output[1]][:, self.input[1]]
            tied = self.input[0] is not None and self.input[0] is self.output[0]
            fixed = {
                "fixed_inputs": not self.input[2],
                "fixed_outputs": not self.output[2],
                "tied": tied and self.input[2],
            }
            yield equal_blocks(ordered, self.groups, **fixed)
            if free and self._movable:
                for finer in (2, 4, 8):
                    many = finer * self.groups
                    if not self.conv.inputs % many and not self.conv.outputs % many:
                        fine = equal_blocks(ordered, many)
                        yield free_blocks(ordered, fine, plain.weights)

    def _kernel_energy(self) -> Tensor:
        """E[o, i]: the energy of what channel i alone adds to filter o."""
        kernel = self.weight.reshape(self.conv.outputs, self.conv.inputs, self.taps)
        moments = self.second.reshape(*(self.conv.inputs, self.taps) * 2)
        within = torch.einsum("iaib->iab", moments)
        return torch.einsum("oia,iab,oib->oi", kernel, within, kernel).clamp_min(0)

    def _covariance_energy(self) -> Tensor:
        """E[o, i]: the square of the whitened covariance of filter o and channel i at a pixel."""
        pixel = torch.arange(self.conv.inputs) * self.taps + self.centre
        outer = zca(self.weight @ self.second @ self.weight.T)
        inner = zca(self.second[pixel][:, pixel])
        return (outer @ (self.weight @ self.second[:, pixel]) @ inner).square()

    def _error(self, blocks: Partition) -> float:
        """Relative output error of the least-squares fit on these blocks."""
        left = sum(
            unexplained(self.second, self.weight[o], self._columns(i))
            for o, i in self._positions(blocks)
        )
        return (left / max(self.total, 1e-300)) ** 0.5

    def _extraction_error(self, plain: Partition) -> float:
        """Relative output error of the user's kernel with all but its diagonal blocks zeroed."""
        lost = self.weight.clone()
        for o, i in zip(plain.outputs, plain.inputs, strict=True):
            lost[o[:, None], self._columns(i)] = 0.0
        return (float(((lost @ self.second) * lost).sum()) / max(self.total, 1e-300)) ** 0.5

    def _positions(self, blocks: Partition) -> Iterator[tuple[Tensor, Tensor]]:
        """Blocks in the present order of channels as positions in the kernel."""
        for o, i in zip(blocks.outputs, blocks.inputs, strict=True):
            yield self.output[1][o], self.input[1][i]

    def _columns(self, inputs: Tensor) -> Tensor:
        return (inputs[:, None] * self.taps + torch.arange(self.taps)).flatten()

    def _note(self, side: tuple[Dim | None, Tensor, bool], blocks: Sequence[Tensor]) -> None:
        dim, order, movable = side
        if dim is not None and movable:
            self.layout.orders[dim] = order[torch.cat(list(blocks))]
