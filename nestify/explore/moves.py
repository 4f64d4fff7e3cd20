"""Moves in the space of subnets: a step down, a share of everything, a point between two.

Pure arithmetic over units; nothing here runs a model.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import lru_cache

from nestify.space import SearchSpace, Subnet, Unit

STEP_SHARE = 0.125


@lru_cache(maxsize=4096)
def choices(unit: Unit) -> tuple[int, ...]:
    """Return the legal sizes of ``unit``, kept: a search asks for them thousands of times."""
    return tuple(unit.choices)


def nearest(legal: Sequence[int], wanted: float) -> int:
    """Return the choice closest to ``wanted``; of two as close, the larger.

    Example:
        >>> nearest((8, 16, 32), 12), nearest((8, 16, 32), 100)
        (16, 32)
    """
    above = bisect_left(legal, wanted)
    if above == 0:
        return legal[0]
    if above == len(legal):
        return legal[-1]
    low, high = legal[above - 1], legal[above]
    return high if high - wanted <= wanted - low else low


def fewer(unit: Unit, size: int, count: int) -> int:
    """Return the legal size at least ``count`` below ``size``, or else the smallest.

    Example:
        >>> fewer(Unit("paths", "path", size=8), 8, 1)
        7
    """
    return choices(unit)[max(0, bisect_right(choices(unit), size - count) - 1)]


def shrunk(unit: Unit, size: int, share: float = STEP_SHARE) -> int:
    """Return ``size`` one step down: a share of the unit, and at least one choice.

    Example:
        >>> shrunk(Unit("conv1", "channel", size=64, minimum=8, step=8), 64)
        56
    """
    legal = choices(unit)
    smaller = legal[: bisect_left(legal, size)]
    return nearest(smaller, size - share * unit.size) if smaller else size


def between(space: SearchSpace, low: Subnet, high: Subnet, share: float) -> Subnet:
    """Return the subnet at ``share`` of the way from ``low`` to ``high``, each unit rounded."""
    sizes: dict[str, int] = {}
    for unit in space.units:
        start, end = low[unit.name], high[unit.name]
        sizes[unit.name] = nearest(choices(unit), start + share * (end - start))
    return Subnet(sizes)


def subnet_with(subnet: Subnet, sizes: dict[str, int]) -> Subnet:
    """Return ``subnet`` with some units changed."""
    return Subnet({**dict(subnet.items()), **sizes})
