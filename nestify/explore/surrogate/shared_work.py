"""What an evaluation has to compute anew, where subnets that begin alike share activations."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nestify.explore.surrogate.encoding import Rows

__all__ = ["Work"]

Floats = NDArray[np.float64]
Prints = NDArray[np.uint64]


class Work:
    """The shares of the work of an evaluation that are left, given what was evaluated before.

    ``before`` says how much of it is done when the choice of each unit comes in: rows that agree
    in all units up to a place share what is computed there. A row's beginnings are known by sums of
    random numbers, one for each choice of each unit (Zobrist, 1970).

    Example:
        >>> work = Work(before=np.array([0.0, 0.6]), most=np.array([3, 3]))
        >>> work.note(np.array([[3, 3]]))
        >>> work.left(work.prints(np.array([[3, 1], [2, 3]])))
        array([0.4, 1. ])
    """

    def __init__(self, before: Floats, most: Rows) -> None:
        self._order = np.argsort(before, kind="stable")
        entering = np.append(0.0, before[self._order])
        self._ends = np.flatnonzero(np.diff(entering) > 0)  # how many units come in before
        self._shares = entering[self._ends + 1]
        choices = int(most.max(initial=0)) + 1
        numbers = np.random.default_rng(0).integers(1 << 63, size=(len(before), choices))
        self._numbers = numbers.astype(np.uint64)
        self._known: Prints = self.prints(np.zeros((0, len(before)), np.int64))

    def prints(self, rows: Rows) -> Prints:
        """A number for each beginning of each row, a column for each place of an entrance."""
        chosen = self._numbers[self._order, rows[:, self._order]]
        sums = np.cumsum(chosen, axis=1, dtype=np.uint64)
        return np.insert(sums, 0, 0, axis=1)[:, self._ends]

    def note(self, rows: Rows) -> None:
        """From now on ``rows`` have been evaluated."""
        self._known = np.concatenate([self._known, self.prints(rows)])

    def left(self, prints: Prints) -> Floats:
        """What is left to compute of each row, from 0 to 1."""
        columns = [np.isin(a, b) for a, b in zip(prints.T, self._known.T, strict=True)]
        return self._left(np.array(columns).reshape(len(columns), len(prints)).T)

    def left_after(self, prints: Prints, place: int) -> Floats:
        """What would be left if the row at ``place`` were evaluated, and no other."""
        return self._left(prints == prints[place])

    def _left(self, shared: NDArray[np.bool_]) -> Floats:
        return 1 - (shared * self._shares).max(axis=1, initial=0.0)
