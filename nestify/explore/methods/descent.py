"""Ways down from a subnet: a ladder of costs, and what a step of each unit is seen to lose."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Generator, Sequence

import numpy as np

from nestify.explore.methods.steps import scaled, shrunk, subnet_with
from nestify.explore.rounds import Problem, Round, Scores
from nestify.space import Subnet, Unit

__all__ = ["Losses", "Record", "even_share", "ladder"]

_NOISE = 0.5  # standard deviation of the logarithm of a loss, where ways down are varied


class Record:
    """What a method has been told so far."""

    def __init__(self) -> None:
        self.scores: dict[Subnet, float] = {}
        self.begun: set[Subnet] = set()

    def ask(
        self, subnets: Sequence[Subnet], keep: int = 0
    ) -> Generator[Round, Scores, list[float | None]]:
        """Ask for scores and note them; those of subnets that were stopped are estimates."""
        if not subnets:
            return []
        scores = yield Round(subnets, keep)
        for subnet, value, whole in zip(subnets, scores.values, scores.whole, strict=True):
            if value is not None:
                self.begun.add(subnet)
                if whole:
                    self.scores[subnet] = value
        return list(scores.values)


def ladder(problem: Problem, rungs: int) -> list[float]:
    """Falling costs between both ends, even in their square root, as MACs go with width squared."""
    top, bottom = problem.prices([problem.space.largest(), problem.space.smallest()])
    roots = np.linspace(float(top) ** 0.5, float(bottom) ** 0.5, rungs + 2)[1:-1]
    return [float(root) ** 2 for root in roots]


def even_share(problem: Problem, here: Subnet, rung: float) -> Subnet:
    """Shrink every unit by the same share, as little as brings the cost to ``rung``."""
    subnets = [scaled(problem.space, here, float(share)) for share in np.linspace(1, 0, 65)]
    fits = np.flatnonzero(problem.prices(subnets) <= rung)
    return subnets[fits[0]] if len(fits) else subnets[-1]


class Losses:
    """The score lost per cost saved by one step of each unit, as last seen.

    Where there are more units than looks, neighbours are bundled, which stand near each other in
    the model: a bundle is stepped and judged as one.
    """

    def __init__(self, problem: Problem, window: float, bundles: int) -> None:
        units = problem.space.units
        edges = np.linspace(0, len(units), max(1, bundles) + 1).round().astype(int)
        self.bundles = [units[a:b] for a, b in itertools.pairwise(edges)]
        self._problem, self.window = problem, window
        self._rates = [0.0] * len(self.bundles)
        self._of = {unit.name: i for i, bundle in enumerate(self.bundles) for unit in bundle}

    def rate(self, unit: Unit) -> float:
        """The loss of ``unit`` per cost saved; at least almost nothing, also where it was a gain.

        A gain is mostly noise: counted as one, it would spend the unit whole.
        """
        return max(self._rates[self._of[unit.name]], 1e-3 * max([1e-30, *self._rates]))

    def step(self, here: Subnet, bundle: int) -> Subnet:
        """``here`` with each unit of a bundle one step smaller."""
        return subnet_with(here, {u.name: self.smaller(here, u) for u in self.bundles[bundle]})

    def smaller(self, here: Subnet, unit: Unit) -> int:
        """The size of ``unit`` one step below that in ``here``."""
        return shrunk(unit, here[unit.name], self.window)

    def note(self, bundle: int, here: Subnet, there: Subnet, lost: float) -> None:
        """Note that the step of a bundle from ``here`` to ``there`` lost so much of the score."""
        before, after = self._problem.prices([here, there])
        self._rates[bundle] = lost / max(float(before - after), 1.0)

    def cheapest(self, here: Subnet, count: int) -> list[int]:
        """The bundles that look cheapest, of those that ``here`` can still shrink."""
        there = [i for i in range(len(self.bundles)) if self.step(here, i) != here]
        return sorted(there, key=self._rates.__getitem__)[:count]

    def descend(
        self,
        here: Subnet,
        rung: float,
        random: random.Random | None = None,
        but: Unit | None = None,
    ) -> Subnet:
        """Shrink units step by step, cheapest first, until the cost is at ``rung``.

        ``random`` makes it a variation: losses with noise. The unit ``but`` stays.
        """
        chain = self._chain(here, random, but)
        fits = np.flatnonzero(self._problem.prices(chain) <= rung)
        return chain[fits[0]] if len(fits) else chain[-1]

    def _chain(self, here: Subnet, random: random.Random | None, but: Unit | None) -> list[Subnet]:
        """All subnets from ``here`` to the smallest, one unit's step apart.

        A unit's rate is taken to grow with each further step, so that the walk does not spend one
        unit whole on the word of its first step.
        """
        heap = [
            (self.rate(unit) * (random.lognormvariate(0, _NOISE) if random else 1.0), k, 1, unit)
            for k, unit in enumerate(self._problem.space.units)
            if unit != but
        ]
        heapq.heapify(heap)
        chain = [here]
        while heap:
            rate, k, steps, unit = heapq.heappop(heap)
            smaller = self.smaller(chain[-1], unit)
            if smaller < chain[-1][unit.name]:
                chain.append(subnet_with(chain[-1], {unit.name: smaller}))
                heapq.heappush(heap, (rate / steps * (steps + 1), k, steps + 1, unit))
        return chain
