"""Greedy width search: from the largest subnet down a ladder of MACs, the cheapest loss first.

Each rung compares two ways down from where the walk stands: every unit by the same share, or single
units one step at a time in the order of their score loss per MAC saved; the one that loses less per
MAC wins. Losses are scored for every unit (or bundle of neighbouring units, when there are more
than a third of the budget) at the largest subnet, and again at each rung for those that look
cheapest, as losses grow while a unit shrinks. With a budget of n this visits the whole range of
costs, where scoring every unit at every step would spend n before the first unit is halved.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nestify.explore.scoring import Ledger
from nestify.explore.steps import scaled, shrunk, step_down, subnet_with
from nestify.space import SearchSpace, Subnet, Unit

Macs = Callable[[Sequence[Subnet]], NDArray[np.int64]]


@dataclass(frozen=True)
class _Budget:
    """How the evaluations are spread: bundles in the first sweep, rungs, fresh looks a rung."""

    bundles: int
    rungs: int
    looks: int

    @classmethod
    def of(cls, left: int, units: int) -> _Budget:
        bundles = min(units, left // 3)
        rungs = max(1, min(16, (left - bundles) // 4))
        looks = max(0, min(bundles, (left - bundles) // rungs - 2))
        return cls(bundles, rungs, looks)


def walk(ledger: Ledger, macs: Macs, reserve: int) -> list[Subnet]:
    """Score subnets from the largest down; return those the walk stood on.

    Example:
        >>> walk(ledger, lambda subnets: nested.estimate(subnets).macs, reserve=1)

    Args:
        ledger: scores subnets and counts them.
        macs: the MACs of subnets.
        reserve: how many evaluations to leave.

    Returns:
        The path, each subnet at most the one before it in every unit; the first is the largest.
    """
    space = ledger.nested.space
    here = space.largest()
    budget = _Budget.of(ledger.left - reserve, len(space.units))
    losses = _Losses(ledger, macs, _bundled(space, budget.bundles))
    losses.look(here, range(budget.bundles))
    path = [here]
    for rung in _ladder(macs, space, budget.rungs):
        if here != path[0]:
            losses.look(here, losses.cheapest(budget.looks))
        options = (_uniform(space, here, macs, rung), losses.descend(here, rung))
        moves = [there for there in options if there != here][: max(0, ledger.left - reserve)]
        if moves:
            rates = [losses.rate(here, there) for there in moves]
            here = moves[rates.index(min(rates))]
            path.append(here)
    return path


def _ladder(macs: Macs, space: SearchSpace, rungs: int) -> list[float]:
    """Return falling MACs, even in their square root: MACs go with the square of the width."""
    top, bottom = (float(m) for m in macs([space.largest(), space.smallest()]))
    roots = np.linspace(top**0.5, bottom**0.5, rungs + 2)[1:-1]
    return [float(root) ** 2 for root in roots]


def _uniform(space: SearchSpace, here: Subnet, macs: Macs, rung: float) -> Subnet:
    """Shrink every unit by the same share, as little as brings the MACs to ``rung``."""
    subnets = [scaled(space, here, float(share)) for share in np.linspace(1, 0, 65)]
    fits = np.flatnonzero(macs(subnets) <= rung)
    return subnets[fits[0]] if len(fits) else subnets[-1]


def _bundled(space: SearchSpace, count: int) -> list[tuple[Unit, ...]]:
    """Cut the units into ``count`` runs of neighbours, which stand near each other in the model."""
    edges = np.linspace(0, len(space.units), count + 1).round().astype(int)
    return [space.units[a:b] for a, b in itertools.pairwise(edges)]


class _Losses:
    """The score lost per MAC saved by one step of each bundle of units, as last seen."""

    def __init__(self, ledger: Ledger, macs: Macs, bundles: list[tuple[Unit, ...]]) -> None:
        self._ledger = ledger
        self._macs = macs
        self._bundles = bundles
        self._rates = [0.0] * len(bundles)

    def look(self, here: Subnet, bundles: Sequence[int]) -> None:
        """Score one step of each of ``bundles`` from ``here``."""
        for i in bundles:
            there = step_down(here, self._bundles[i])
            if there != here:
                self._rates[i] = self.rate(here, there)

    def cheapest(self, count: int) -> list[int]:
        return sorted(range(len(self._rates)), key=self._rates.__getitem__)[:count]

    def rate(self, here: Subnet, there: Subnet) -> float:
        """Return the score lost per MAC saved between two subnets."""
        before, after = self._ledger.score(here), self._ledger.score(there)
        if before is None or after is None:
            return float("inf")
        saved = float(np.subtract(*self._macs([here, there])))
        return (before - after) / max(saved, 1.0)

    def descend(self, here: Subnet, rung: float) -> Subnet:
        """Shrink single units, cheapest first, until the MACs are at ``rung``."""
        chain = self._chain(here)
        fits = np.flatnonzero(self._macs(chain) <= rung)
        return chain[fits[0]] if len(fits) else chain[-1]

    def _chain(self, here: Subnet) -> list[Subnet]:
        """List all subnets from ``here`` to the smallest, one unit's step apart.

        A unit's rate is taken to grow with each further step, so that the walk does not spend one
        unit whole on the word of its first step. A gain counts as a loss of almost nothing, for the
        same reason.
        """
        floor = 1e-3 * max([1e-30, *self._rates])
        heap = [
            (max(rate, floor), k, 1, unit)
            for rate, bundle, start in zip(self._rates, self._bundles, self._starts(), strict=True)
            for k, unit in enumerate(bundle, start)
        ]
        heapq.heapify(heap)
        chain = [here]
        while heap:
            rate, k, steps, unit = heapq.heappop(heap)
            size = chain[-1][unit.name]
            smaller = shrunk(unit, size)
            if smaller < size:
                chain.append(subnet_with(chain[-1], {unit.name: smaller}))
                heapq.heappush(heap, (rate / steps * (steps + 1), k, steps + 1, unit))
        return chain

    def _starts(self) -> list[int]:
        return [sum(len(b) for b in self._bundles[:i]) for i in range(len(self._bundles))]
