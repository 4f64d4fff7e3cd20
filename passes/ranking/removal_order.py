"""The order in which positions are best removed, where what removals cost adds up in vectors.

Each position has a vector (one number a sample), and a set of removed positions costs half the mean
square of the sum of their vectors: so two positions that do the same are worth little only until
one of them is gone. Positions are removed one after the other, each time the cheapest (optimal
brain damage without its diagonal approximation).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Rows", "eliminate"]

_ROWS = 1024  # as many samples are kept exactly; of more, as many random signed sums
_ROUNDS = 1024  # of more positions several are removed at a time


class Rows:
    """Adds up rows (samples, positions) without keeping more than ``limit`` of them.

    Where more come, each is added to one of the kept rows with a random sign, which leaves squares
    and products of columns as they are on average (a count sketch).
    """

    def __init__(self, limit: int = _ROWS) -> None:
        self.count = 0
        self._limit = limit
        self._kept: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        """Take in more rows."""
        if self._kept is None:
            self._kept = rows.new_zeros(self._limit, rows.shape[1])
        first = self._limit - self.count
        draw = torch.Generator().manual_seed(self.count)
        if first > 0:
            fitting = rows[:first]
            self._kept[self.count : self.count + len(fitting)] = fitting
        rest = rows[max(first, 0) :]
        places = torch.randint(self._limit, (len(rest),), generator=draw).to(rows.device)
        signs = 2 * torch.randint(0, 2, (len(rest), 1), generator=draw) - 1
        self._kept.index_add_(0, places, rest * signs.to(rest))
        self.count += len(rows)

    @property
    def rows(self) -> Tensor:
        """The kept rows, scaled so that their squares add up to means over all samples."""
        assert self._kept is not None
        return self._kept[: min(self.count, self._limit)] / self.count**0.5


def eliminate(rows: Tensor) -> tuple[Tensor, Tensor]:
    """What each position costs as it is removed, and all positions from the last removed on.

    No position costs less than one that was removed before it.

    >>> twins_and_a_third = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.5]])
    >>> costs, order = eliminate(twins_and_a_third)
    >>> order.tolist(), costs.tolist()
    ([0, 2, 1], [1.5, 0.5, 1.125])
    """
    positions = rows.shape[1]
    squares, gone = rows.square().sum(0), rows.new_zeros(len(rows))
    costs, least = torch.zeros_like(squares), rows.new_zeros(())
    there = torch.ones(positions, dtype=torch.bool, device=rows.device)
    removed: list[int] = []
    step = -(-positions // _ROUNDS)
    while len(removed) < positions:
        now = (squares / 2 + gone @ rows).masked_fill(~there, torch.inf)
        last_first = now.flip(0).argsort(stable=True)[: min(step, positions - len(removed))]
        chosen = positions - 1 - last_first
        for position in chosen.tolist():
            least = torch.maximum(least, now[position])
            costs[position] = least
        removed += chosen.tolist()
        there[chosen] = False
        gone = gone + rows[:, chosen].sum(1)
    return costs, torch.tensor(removed[::-1])
