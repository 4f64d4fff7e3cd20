"""Random choices that can be replayed: what a model was drawn from, and what shrinking lowers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Choices:
    """Draws from a generator, or replays recorded draws; ``taken`` records both.

    A draw is the index of an option, and options stand simplest first: a lower record is a simpler
    model. A record that is too long for its options wraps around, one that is missing means 0.

    >>> first = Choices(random.Random(0))
    >>> [first.pick("abc"), first.pick("de")] == [Choices(None, first.taken).pick("abc"),
    ...                                           "de"[first.taken[1]]]
    True
    """

    def __init__(self, rng: random.Random | None, recorded: Sequence[int] = ()) -> None:
        self.rng = rng
        self.recorded = tuple(recorded)
        self.taken: list[int] = []

    def pick(self, options: Sequence[T]) -> T:
        """One of the options."""
        at = len(self.taken)
        if self.rng is not None:
            index = self.rng.randrange(len(options))
        else:
            index = self.recorded[at] % len(options) if at < len(self.recorded) else 0
        self.taken.append(index)
        return options[index]
