"""A unit of the search space and the sizes that may be chosen for it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import overload

__all__ = ["Unit"]


class Choices(Sequence[int]):
    """The legal sizes of a unit, ascending: worked out as they are asked for, as there may be many.

    >>> list(Choices(8, 20, 8)), Choices(1, 50_000, 1)[-1]
    ([8, 16, 20], 50000)
    """

    __slots__ = ("_multiples", "_size", "_smallest")

    def __init__(self, minimum: int, size: int, step: int) -> None:
        self._smallest, self._size = minimum, size
        self._multiples = range((minimum // step + 1) * step, size, step)

    def __len__(self) -> int:
        return 1 + len(self._multiples) + (self._size > self._smallest)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[int, ...]: ...
    def __getitem__(self, index: int | slice) -> int | tuple[int, ...]:
        places = range(len(self))[index]
        if isinstance(places, range):
            return tuple(self[i] for i in places)
        if places == 0:
            return self._smallest
        return self._multiples[places - 1] if places <= len(self._multiples) else self._size

    def __contains__(self, size: object) -> bool:
        return size in (self._smallest, self._size) or size in self._multiples

    def __repr__(self) -> str:
        return repr(tuple(self))

    def at_most(self, size: float) -> int:
        """The largest legal size that is not above ``size``, or else the smallest."""
        return self[max(0, bisect_right(self, size) - 1)]

    def nearest(self, size: float) -> int:
        """The legal size closest to ``size``; of two as close, the larger."""
        above = bisect_right(self, size)
        near = self[max(0, above - 1) : above + 1]
        return min(reversed(near), key=lambda choice: abs(choice - size))


_choices = lru_cache(maxsize=4096)(Choices)  # a training step asks for those of each unit


@dataclass(frozen=True, slots=True)
class Unit:
    """One independent choice: a size from ``minimum`` up to ``size`` in steps of ``step``.

    ``kind`` is ``channel``, ``neuron``, ``head``, ``path``, ``layer``, ``bit`` or ``level``;
    ``draw`` names how training draws the size (:mod:`nestify.space.draw_laws`).

    >>> Unit("conv1", "channel", 20, 8, 8).choices
    (8, 16, 20)
    """

    name: str
    kind: str
    size: int
    minimum: int = 1
    step: int = 1
    draw: str = field(default="mixture", repr=False)

    @property
    def choices(self) -> Choices:
        """Legal sizes, ascending: the minimum, multiples of the step above it, the full size."""
        return _choices(self.minimum, self.size, self.step)

    def nearest(self, size: float) -> int:
        """The legal size closest to ``size``; of two as close, the larger."""
        return self.choices.nearest(size)
