"""Which channels go into one filter group: the blocks that keep the most of a dense kernel.

An energy matrix (filters, input channels) says how much each input channel moves each filter. A
partition puts filters and channels into blocks; what lies outside the blocks is lost. Finding the
best is hard (it is balanced co-clustering), so good ones are built and improved by swaps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Partition", "equal_blocks", "free_blocks", "in_order"]


@dataclass(frozen=True, slots=True)
class Partition:
    """Blocks, each the positions of its filters and of its input channels.

    >>> blocks = in_order(4, 2, 2)
    >>> [b.tolist() for b in blocks.outputs], [b.tolist() for b in blocks.inputs], blocks.weights
    ([[0, 1], [2, 3]], [[0], [1]], 4)
    """

    outputs: tuple[Tensor, ...]
    inputs: tuple[Tensor, ...]

    @property
    def weights(self) -> int:
        """Weights a tap of the kernel has: the area of the blocks."""
        return sum(len(o) * len(i) for o, i in zip(self.outputs, self.inputs, strict=True))

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Filters and input channels of each block."""
        return tuple((len(o), len(i)) for o, i in zip(self.outputs, self.inputs, strict=True))

    def kept(self, energy: Tensor) -> float:
        """The share of ``energy`` inside the blocks."""
        inside = sum(energy[o][:, i].sum() for o, i in zip(self.outputs, self.inputs, strict=True))
        return float(inside) / max(float(energy.sum()), 1e-300)

    def by_size(self) -> Partition:
        """The same blocks, those of one size side by side."""
        order = sorted(range(len(self.outputs)), key=lambda b: self.sizes[b], reverse=True)
        return Partition(
            tuple(self.outputs[b] for b in order), tuple(self.inputs[b] for b in order)
        )


def in_order(outputs: int, inputs: int, groups: int) -> Partition:
    """The blocks of channels as they stand: plain block extraction."""
    return Partition(torch.arange(outputs).chunk(groups), torch.arange(inputs).chunk(groups))


def equal_blocks(
    energy: Tensor,
    groups: int,
    *,
    fixed_inputs: bool = False,
    fixed_outputs: bool = False,
    tied: bool = False,
) -> Partition:
    """``groups`` blocks of one size that keep much of ``energy``.

    ``fixed_inputs`` and ``fixed_outputs`` leave the channels of that side in their order; ``tied``
    puts both sides in the same one, as they are one dim.

    >>> energy = torch.eye(4)[[2, 0, 3, 1]]
    >>> equal_blocks(energy, 4).kept(energy)
    1.0
    """
    outputs, inputs = energy.shape
    if tied:
        blocks = _refined(energy + energy.T, _grown(energy + energy.T, groups), groups)
        return Partition(blocks, blocks)
    plain = in_order(outputs, inputs, groups)
    if fixed_inputs and fixed_outputs:
        return plain
    if fixed_inputs:
        return Partition(_assigned(_sums(energy, plain.inputs), groups), plain.inputs)
    if fixed_outputs:
        return Partition(plain.outputs, _assigned(_sums(energy.T, plain.outputs), groups))
    tried = (_alternated(energy, start, groups) for start in (plain.inputs, _grown(energy, groups)))
    return max(tried, key=lambda blocks: blocks.kept(energy))


def free_blocks(energy: Tensor, fine: Partition, weights: int) -> Partition:
    """Merge blocks of ``fine`` while all have at most ``weights``: heterogeneous filter groups.

    The merge that keeps the most more energy for each weight it adds comes first (the paper's
    section 6 leaves such groups to future work).
    """
    outputs, inputs = list(fine.outputs), list(fine.inputs)
    between = torch.stack([_sums(energy[o], inputs).sum(0) for o in outputs])
    spent = fine.weights
    while len(outputs) > 1:
        rows = torch.tensor([len(o) for o in outputs], dtype=energy.dtype)
        columns = torch.tensor([len(i) for i in inputs], dtype=energy.dtype)
        added = torch.outer(rows, columns)
        added = added + added.T
        gain = (between + between.T) / added
        gain[(added > weights - spent) | torch.eye(len(outputs), dtype=torch.bool)] = -1.0
        a, b = divmod(int(gain.argmax()), len(outputs))
        if gain[a, b] <= 0:
            break
        a, b = min(a, b), max(a, b)
        spent += int(added[a, b])
        outputs[a] = torch.cat([outputs[a], outputs.pop(b)])
        inputs[a] = torch.cat([inputs[a], inputs.pop(b)])
        for side in (0, 1):
            between.select(side, a).add_(between.select(side, b))
            rest = [k for k in range(between.shape[side]) if k != b]
            between = between.index_select(side, torch.tensor(rest))
    return Partition(
        tuple(o.sort().values for o in outputs), tuple(i.sort().values for i in inputs)
    )


def _sums(energy: Tensor, blocks: Sequence[Tensor]) -> Tensor:
    """Row by row, the energy inside each block of columns."""
    return torch.stack([energy[:, block].sum(1) for block in blocks], 1)


def _grown(energy: Tensor, groups: int) -> tuple[Tensor, ...]:
    """Equal blocks of columns, each grown from the strongest one left by what is most like it."""
    unit = energy / energy.norm(dim=0).clamp_min(1e-300)
    alike = unit.T @ unit
    strength = energy.sum(0)
    free = torch.ones(energy.shape[1], dtype=torch.bool)
    blocks: list[Tensor] = []
    for _ in range(groups):
        block: list[int] = []
        affinity = torch.zeros_like(strength)
        for _ in range(energy.shape[1] // groups):
            # Of those equally alike (such as not at all) the strongest.
            best = affinity[free].max()
            open_ = free & (affinity >= best)
            chosen = int(torch.where(open_, strength, -torch.ones_like(strength)).argmax())
            block.append(chosen)
            free[chosen] = False
            affinity = affinity + alike[chosen]
        blocks.append(torch.tensor(sorted(block)))
    return tuple(blocks)


def _alternated(energy: Tensor, start: Sequence[Tensor], groups: int) -> Partition:
    """Choose filters for the channels, channels for the filters, until nothing is gained."""
    inputs = tuple(start)
    best = Partition(_assigned(_sums(energy, inputs), groups), inputs)
    for _ in range(32):
        outputs = _assigned(_sums(energy, best.inputs), groups)
        better = Partition(outputs, _assigned(_sums(energy.T, outputs), groups))
        if better.kept(energy) <= best.kept(energy) + 1e-12:
            break
        best = better
    return best


def _assigned(scores: Tensor, groups: int) -> tuple[Tensor, ...]:
    """Put each row into one of ``groups`` blocks of equal size: first choices, then swaps."""
    count = len(scores)
    room = [count // groups] * groups
    ranked = scores.sort(1, descending=True)
    regret = ranked.values[:, 0] - ranked.values[:, min(1, groups - 1)]
    home = torch.zeros(count, dtype=torch.int64)
    for row in regret.argsort(descending=True, stable=True).tolist():
        block = next(b for b in ranked.indices[row].tolist() if room[b])
        home[row] = block
        room[block] -= 1
    for a, b in _swaps(scores, home):
        home[[a, b]] = home[[b, a]]
    return _blocks(home, groups)


def _swaps(scores: Tensor, home: Tensor) -> Iterator[tuple[int, int]]:
    """Pairs of rows that gain by changing places, the best first, while there are any."""
    for _ in range(len(home)):
        own = scores.gather(1, home[:, None])
        there = scores[:, home]
        gain = there + there.T - own - own.T
        best = int(gain.argmax())
        a, b = divmod(best, len(home))
        if gain[a, b] <= 1e-12 * float(scores.abs().max()):
            return
        yield a, b


def _refined(energy: Tensor, start: Sequence[Tensor], groups: int) -> tuple[Tensor, ...]:
    """Improve one set of blocks of a symmetric energy by moving all rows to where they belong."""
    blocks = tuple(start)
    for _ in range(8):
        moved = _assigned(_sums(energy, blocks), groups)
        if Partition(moved, moved).kept(energy) <= Partition(blocks, blocks).kept(energy):
            break
        blocks = moved
    return blocks


def _blocks(home: Tensor, groups: int) -> tuple[Tensor, ...]:
    return tuple((home == block).nonzero().flatten() for block in range(groups))
