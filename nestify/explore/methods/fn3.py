"""FN3's search (Cui et al., 2020, section 4), judged by score per cost saved, with few looks.

What stays of Algorithm 1: from the largest subnet down, C candidates a step, each with a window dp
of one unit less. What differs: a step is judged by the score that it loses per cost saved, and only
the units that looked cheapest when they were last tried are tried again, a few at a time, until
none that is left looks cheaper (a lazy greedy descent, Minoux, 1978). Where the evaluations do not
reach for single steps, several of the cheapest are taken at once. With what is left of the budget,
the widest gaps of the front are filled, and units trade steps.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nestify.errors import UsageError
from nestify.explore.methods.descent import Damage, Record
from nestify.explore.methods.refinement import refine
from nestify.explore.methods.steps import shrunk
from nestify.explore.rounds import Merit, Problem, Round, Rounds, Scores
from nestify.space import Subnet, Unit

__all__ = ["Fn3"]

_ENOUGH = 512  # evaluations that are spent where there is no limit
_LOOKS = 3  # steps that are tried together


@dataclass(frozen=True, slots=True)
class Fn3:
    """At most C ``candidates`` a step, windows of dp of a unit.

    ``refine`` is the share of the evaluations that is spent on the front after the descent.

    Raises:
        UsageError: an option out of range.
    """

    candidates: int = 10
    window: float = 0.125
    refine: float = 0.25

    def __post_init__(self) -> None:
        if self.candidates < 1:
            raise UsageError("candidates of method fn3 must be at least 1")
        if not 0 < self.window <= 1 or not 0 <= self.refine < 1:
            raise UsageError("window of method fn3 must be in (0, 1], refine in [0, 1)")

    def rounds(self, problem: Problem) -> Rounds:
        """Yield looks at single steps on the way down, then refinements."""
        largest, smallest = problem.space.largest(), problem.space.smallest()
        record = Record()
        budget = min(problem.left, _ENOUGH)
        (top,) = yield from record.ask([largest])
        yield from record.ask([smallest])
        if top is None or largest == smallest:
            return
        damage = Damage(problem, record, self.window)
        end = int(budget - self.refine * (budget - 2))
        yield from self._descend(problem, record, damage, end)
        yield from refine(problem, record, damage, budget)

    def _descend(self, problem: Problem, record: Record, damage: Damage, end: int) -> Rounds:
        here = problem.space.largest()
        rates = yield from self._first_looks(problem, record, damage, (end - 2) // 2)
        while problem.left > 0 and len(record.begun) < end and here in record.scores:
            open_units = [u for u in problem.space.units if here[u.name] > u.minimum]
            if not open_units:
                return
            at_once = self._at_once(damage, here, open_units, end - len(record.begun))
            most = self.candidates if at_once == 1 else _LOOKS
            seen = yield from self._looks(problem, record, damage, here, open_units, rates, most)
            before = here
            if at_once == 1 and seen:
                here = min(seen, key=seen.__getitem__)
            else:
                here = self._down(here, open_units, rates, at_once)
                yield from record.ask([here])
            for unit in open_units:
                if here[unit.name] < before[unit.name]:
                    rates[unit.name] *= self._growth(unit, here) / self._growth(unit, before)

    def _first_looks(
        self, problem: Problem, record: Record, damage: Damage, count: int
    ) -> Generator[Round, Scores, dict[str, float]]:
        """What one step of each unit loses per cost saved; of neighbours at once where there are
        more units than looks.
        """
        largest, units = problem.space.largest(), problem.space.units
        edges = np.linspace(0, len(units), min(len(units), max(1, count)) + 1).round().astype(int)
        bundles = [units[a:b] for a, b in itertools.pairwise(edges)]
        steps = [damage.step(largest, bundle) for bundle in bundles]
        values = yield from record.ask(steps)
        found: dict[str, float] = {}
        for bundle, step, value in zip(bundles, steps, values, strict=True):
            merit = merit_of(problem, record, largest, step)
            lost = 0.0 if value is None else (merit.base - value) * merit.rate
            found |= dict.fromkeys((unit.name for unit in bundle), lost)
        return found

    def _looks(
        self,
        problem: Problem,
        record: Record,
        damage: Damage,
        here: Subnet,
        units: Sequence[Unit],
        rates: dict[str, float],
        most: int,
    ) -> Generator[Round, Scores, dict[Subnet, float]]:
        """Try steps, a few at a time, until none that is left looks cheaper; note their rates.

        Returns what each step that was scored on all the data loses per cost saved.
        """
        seen: dict[Subnet, float] = {}
        waiting = sorted(units, key=lambda unit: rates[unit.name])[:most]
        while waiting and (not seen or rates[waiting[0].name] < min(seen.values())):
            tried, waiting = waiting[:_LOOKS], waiting[_LOOKS:]
            steps = [damage.step(here, [unit]) for unit in tried]
            merits = [merit_of(problem, record, here, step) for step in steps]
            values = yield from record.ask(steps, 1, merits)
            for unit, step, merit, value in zip(tried, steps, merits, values, strict=True):
                if value is None:
                    return seen
                rates[unit.name] = (merit.base - value) * merit.rate
                if step in record.scores:
                    seen[step] = rates[unit.name]
        return seen

    def _down(
        self, here: Subnet, units: Sequence[Unit], rates: Mapping[str, float], count: int
    ) -> Subnet:
        """Take ``count`` steps, the cheapest one at a time, without looking."""
        sizes = dict(here.items())
        heap = [(rates[unit.name], k, unit) for k, unit in enumerate(units)]
        heapq.heapify(heap)
        while heap and count:
            rate, k, unit = heapq.heappop(heap)
            smaller = shrunk(unit, sizes[unit.name], self.window)
            if smaller < sizes[unit.name]:
                grows = self._growth(unit, sizes | {unit.name: smaller})
                rate *= grows / self._growth(unit, sizes)
                sizes[unit.name], count = smaller, count - 1
                heapq.heappush(heap, (rate, k, unit))
        return Subnet(sizes)

    def _growth(self, unit: Unit, sizes: Mapping[str, int]) -> float:
        """What a step costs goes with this, where losses are the square of what is gone."""
        return 1 + 2 * (unit.size - sizes[unit.name]) / max(1.0, self.window * unit.size)

    def _at_once(self, damage: Damage, here: Subnet, units: Sequence[Unit], left: int) -> int:
        """How many steps to take at once, so that the evaluations reach to the smallest subnet."""
        steps = sum((here[u.name] - u.minimum) / max(1.0, self.window * u.size) for u in units)
        each = min(_LOOKS, len(units))
        if steps * each <= left:
            return 1
        return math.ceil(steps * (each + 1) / max(1, left))


def merit_of(problem: Problem, record: Record, here: Subnet, there: Subnet) -> Merit:
    """The score lost from ``here`` to ``there`` per cost saved, as a merit."""
    before, after = problem.prices([here, there])
    return Merit(record.scores[here], 1 / max(float(before - after), 1.0))
