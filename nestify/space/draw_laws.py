"""Which subnet a training step runs: laws of the draw, and the stream that they read.

A step's random numbers depend on a seed and the number of the step, on nothing else. So every rank
of a distributed run draws the same subnet without a word, and a run that is resumed goes on where
it stopped. FN3 draws every size uniformly and independently (section 3: p(c) = 1/M); then narrow
networks are hardly ever seen whole, so the default here is a mixture: an eighth of the steps train
the full network, half of them one share of all widths, most others shares up to twice or half of
one, and a few draw every width by itself, so that all sizes are met.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import NamedTuple

from nestify.space.subnet import Subnet
from nestify.space.unit import Unit

__all__ = ["DRAWS", "draw_subnet", "keep_probabilities"]


_COINS = 32  # what a law reads of the coin are so many parts
_GRID = 16  # numbers a choice, from which probabilities are counted
_GOLDEN = (math.sqrt(5) - 1) / 2


class _Numbers(NamedTuple):
    """Numbers in [0, 1) of one step: two that all units share, and the unit's own."""

    coin: float
    shared: float
    own: float


def _uniform(unit: Unit, number: float) -> int:
    choices = unit.choices
    return choices[int(number * len(choices))]


def _log_uniform(unit: Unit, number: float) -> int:
    """Every doubling of the size is as likely as the next; the size is rounded down to a choice."""
    shift = 0 if unit.minimum else 1  # blocks may all be dropped: their sizes start at 0
    least, most = unit.minimum + shift, unit.size + unit.step + shift
    size = least * (most / least) ** number - shift
    return unit.choices.at_most(size)


def _mixture(law: Callable[[Unit, float], int], unit: Unit, numbers: _Numbers) -> int:
    """The full size, one share of all units by ``law``, shares within an octave of one, or sizes of
    their own.
    """
    if numbers.coin < 4 / 32:
        return unit.size
    if numbers.coin >= 31 / 32:
        return _log_uniform(unit, numbers.own)
    near = (numbers.own - 1 / 2) / 2 if numbers.coin >= 20 / 32 else 0.0
    number = min(max(numbers.shared + near, 0.0), math.nextafter(1.0, 0.0))
    return law(unit, number)


def _four_octaves(unit: Unit, number: float) -> int:
    """From a sixteenth of the full size on, where every doubling is as likely as the next."""
    return unit.choices.at_most(math.ceil(unit.size * 2.0 ** (-4 * (1 - number))))


DRAWS: Mapping[str, Callable[[Unit, _Numbers], int]] = {
    "uniform": lambda unit, n: _uniform(unit, n.own),
    "log-uniform": lambda unit, n: _log_uniform(unit, n.own),
    "shared-uniform": lambda unit, n: _uniform(unit, n.shared),
    "shared-log-uniform": lambda unit, n: _log_uniform(unit, n.shared),
    "mixture": partial(_mixture, _four_octaves),
    "uniform-mixture": partial(_mixture, _uniform),
}


def draw_subnet(units: Sequence[Unit], numbers: random.Random) -> Subnet:
    """Draw one size a unit, each by the law of its ``draw``.

    >>> draw_subnet([Unit("a", "channel", 8, draw="uniform")], random.Random(0))
    Subnet({'a': 4})
    """
    coin, shared = numbers.random(), numbers.random()
    return Subnet(
        {
            unit.name: DRAWS[unit.draw](unit, _Numbers(coin, shared, numbers.random()))
            for unit in units
        }
    )


def keep_probabilities(unit: Unit, most: int | None = None) -> list[float]:
    """How often a draw keeps each position of ``unit``, of the draws of at most ``most``.

    >>> keep_probabilities(Unit("a", "channel", 4, draw="uniform"))
    [1.0, 0.75, 0.5, 0.25]
    """
    # A lattice: each of the two numbers takes every value once, and neither tells of the other.
    count = len(unit.choices) * _GRID
    stride = next(n for n in range(round(count * _GOLDEN), 0, -1) if math.gcd(n, count) == 1)
    pairs = [((i + 0.5) / count, (i * stride % count + 0.5) / count) for i in range(count)]
    coins = [(i + 0.5) / _COINS for i in range(_COINS)]
    law = DRAWS[unit.draw]
    sizes = [law(unit, _Numbers(coin, *pair)) for pair in pairs for coin in coins]
    drawn = Counter(size for size in sizes if most is None or size <= most)
    below = accumulate(drawn[m] for m in range(unit.size))
    return [1 - less / drawn.total() if drawn else 0.0 for less in below]
