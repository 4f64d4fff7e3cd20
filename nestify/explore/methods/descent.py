"""Ways down from a subnet: a ladder of costs, and a model of what a step of each unit loses."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Generator, Sequence

import numpy as np
from numpy.typing import NDArray

from nestify.explore.methods.steps import scaled, shrunk, subnet_with
from nestify.explore.rounds import Problem, Round, Scores
from nestify.space import Subnet, Unit

__all__ = ["Damage", "Record", "even_share", "ladder"]

_NOISE = 0.5  # standard deviation of the logarithm of a loss, where ways down are varied
_NEAR = 0.25  # of the full cost: what lies further off tells less of the losses here
_RIDGE = 0.02  # how much units are taken to be alike
_SWEEPS = 30


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
    return _first_within(problem, rung, 64, lambda k: scaled(problem.space, here, 1 - k / 64))


def _first_within(
    problem: Problem, rung: float, count: int, subnet: Callable[[int], Subnet]
) -> Subnet:
    """The first of the subnets 0 to ``count``, of falling cost, that costs at most ``rung``."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if problem.price(subnet(middle)) <= rung else (middle + 1, high)
    return subnet(low)


class Damage:
    """A model of what removing steps of units does to the score, fitted to all that is known.

    The score that is lost is taken as a sum over units of a coefficient times the square of how
    much of the unit is gone: the second order in which a trained network loses at first. It is
    fitted near the subnet in question (by cost), by least squares with coefficients from 0 on;
    where little is known, units share what is seen of all of them.
    """

    def __init__(self, problem: Problem, record: Record, window: float) -> None:
        self.window = window
        self._problem, self._record = problem, record
        units = problem.space.units
        self._sizes = np.array([unit.size for unit in units], dtype=np.float64)
        self._top = problem.price(problem.space.largest())
        self._rows: dict[Subnet, tuple[NDArray[np.float64], float]] = {}
        self._known: dict[tuple[Subnet, int], NDArray[np.float64]] = {}

    def step(self, here: Subnet, units: Sequence[Unit]) -> Subnet:
        """``here`` with each of ``units`` one step smaller."""
        return subnet_with(here, {u.name: self.smaller(here, u) for u in units})

    def smaller(self, here: Subnet, unit: Unit) -> int:
        """The size of ``unit`` one step below that in ``here``."""
        return shrunk(unit, here[unit.name], self.window)

    def losses(self, here: Subnet) -> NDArray[np.float64]:
        """The coefficient of each unit near ``here``; the least ones are almost nothing, not 0.

        A unit that loses nothing would be spent whole, which nobody has seen.
        """
        self._learn()
        key = here, len(self._rows)
        if key not in self._known:
            self._known = {key: self._fitted(here)}  # asked for several times in a row
        return self._known[key]

    def _fitted(self, here: Subnet) -> NDArray[np.float64]:
        gone = np.array([row for row, _ in self._rows.values()])
        costs = np.array([cost for _, cost in self._rows.values()])
        scores = np.array([self._record.scores[subnet] for subnet in self._rows])
        mine, cost = self._gone(here) ** 2, self._problem.price(here) / self._top
        score = self._record.scores.get(here, float(scores.max()))
        near = np.exp(-(((costs - cost) / _NEAR) ** 2)) + 1e-3
        found = _fit((gone**2 - mine), score - scores, near)
        return np.maximum(found, 1e-3 * max(float(found.max()), 1e-30))

    def rates(self, here: Subnet) -> NDArray[np.float64]:
        """What the next step of each unit loses near ``here``, per cost saved."""
        return self.losses(here) * self._growth(here) / self._saved(here)

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
        moves = self._moves(here, random, but)
        return _first_within(
            self._problem, rung, len(moves), lambda k: subnet_with(here, dict(moves[:k]))
        )

    def _moves(
        self, here: Subnet, random: random.Random | None, but: Unit | None
    ) -> list[tuple[str, int]]:
        """All single steps from ``here`` to the smallest subnet: which unit, and to which size."""
        rates, growth = self.rates(here), self._growth(here)
        if random is not None:
            rates = rates * [random.lognormvariate(0, _NOISE) for _ in rates]
        units = self._problem.space.units
        heap = [(float(rates[k]), k, 0) for k, unit in enumerate(units) if unit != but]
        heapq.heapify(heap)
        sizes = [here[unit.name] for unit in units]
        moves: list[tuple[str, int]] = []
        while heap:
            _, k, steps = heapq.heappop(heap)
            smaller = shrunk(units[k], sizes[k], self.window)
            if smaller < sizes[k]:
                sizes[k] = smaller
                moves.append((units[k].name, smaller))
                worse = (growth[k] + 2 * (steps + 1)) / growth[k]
                heapq.heappush(heap, (float(rates[k] * worse), k, steps + 1))
        return moves

    def _growth(self, here: Subnet) -> NDArray[np.float64]:
        """By how much the square of what is gone grows with the next step."""
        return 2 * self._gone(here) + 1

    def _gone(self, subnet: Subnet) -> NDArray[np.float64]:
        """How many steps of each unit are removed."""
        sizes = np.array([subnet[unit.name] for unit in self._problem.space.units])
        return (self._sizes - sizes) / np.maximum(self._sizes * self.window, 1.0)

    def _saved(self, here: Subnet) -> NDArray[np.float64]:
        """What the next step of each unit saves."""
        steps = [self.step(here, [unit]) for unit in self._problem.space.units]
        prices = self._problem.prices([here, *steps])
        return np.maximum(prices[0] - prices[1:], 1.0)

    def _learn(self) -> None:
        fresh = [subnet for subnet in self._record.scores if subnet not in self._rows]
        if fresh:
            for subnet, price in zip(fresh, self._problem.prices(fresh), strict=True):
                self._rows[subnet] = self._gone(subnet), float(price) / self._top


def _fit(
    gone: NDArray[np.float64], lost: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Coefficients from 0 on by weighted least squares, drawn a little towards their mean."""
    gram = gone.T @ (gone * weights[:, None])
    right = gone.T @ (lost * weights)
    ridge = _RIDGE * max(float(np.trace(gram)) / len(gram), 1e-30)
    mean = max(0.0, float(right.sum()) / max(float(gram.sum()), 1e-30))
    gram += ridge * np.eye(len(gram))
    right += ridge * mean
    found = np.full(len(gram), mean)
    for _ in range(_SWEEPS):
        for k in range(len(found)):
            found[k] += (right[k] - gram[k] @ found) / gram[k, k]
            found[k] = max(found[k], 0.0)
    return found
