"""FN3's search (Cui et al., 2020, section 4) on a ladder of costs, judged by score per cost saved.

What stays of Algorithm 1: K trajectories from the largest subnet down, C candidates from each,
steps of a window dp of a unit, the K best go on. What differs: a candidate goes down a whole rung
of a ladder of costs, by many single steps at once, in the order of the score that a step of each
unit loses per cost saved. Those losses change slowly on the way down, so a rung measures again only
the steps that look cheapest. All candidates of a rung cost the same, so their scores compare. With
what is left of the budget, the widest gaps of the front are filled, and units trade steps.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

import numpy as np

from nestify.errors import UsageError
from nestify.explore.methods.descent import Damage, Record, even_share, ladder
from nestify.explore.methods.refinement import refine
from nestify.explore.rounds import Problem, Rounds
from nestify.space import Subnet

__all__ = ["Fn3"]

_ENOUGH = 512  # evaluations that are spent where there is no limit


@dataclass(frozen=True, slots=True)
class Fn3:
    """K ``trajectories``, at most C ``candidates`` from each a rung, windows of dp of a unit.

    ``refine`` is the share of the evaluations that is spent on the front after the descent.

    Raises:
        UsageError: an option out of range.
    """

    trajectories: int = 3
    candidates: int = 10
    window: float = 0.125
    refine: float = 0.4

    def __post_init__(self) -> None:
        if self.trajectories < 1 or self.candidates < 1:
            raise UsageError("trajectories and candidates of method fn3 must be at least 1")
        if not 0 < self.window <= 1 or not 0 <= self.refine < 1:
            raise UsageError("window of method fn3 must be in (0, 1], refine in [0, 1)")

    def rounds(self, problem: Problem) -> Rounds:
        """Yield looks at single steps and candidates of each rung, then refinements."""
        largest, smallest = problem.space.largest(), problem.space.smallest()
        record = Record()
        budget = min(problem.left, _ENOUGH)
        (top,) = yield from record.ask([largest])
        yield from record.ask([smallest])
        if top is None or largest == smallest:
            return
        damage = Damage(problem, record, self.window)
        yield from record.ask(self._first_looks(problem, damage, budget // 4))
        left = budget - len(record.begun)
        yield from self._descend(problem, record, damage, max(2, int((1 - self.refine) * left)))
        yield from refine(problem, record, damage, budget)

    def _first_looks(self, problem: Problem, damage: Damage, count: int) -> list[Subnet]:
        """One step of each unit; of neighbours at once where there are more units than looks."""
        largest, units = problem.space.largest(), problem.space.units
        edges = np.linspace(0, len(units), min(len(units), max(1, count)) + 1).round().astype(int)
        steps = (damage.step(largest, units[a:b]) for a, b in itertools.pairwise(edges))
        return list(dict.fromkeys(step for step in steps if step != largest))

    def _descend(self, problem: Problem, record: Record, damage: Damage, budget: int) -> Rounds:
        random = problem.random()
        end = len(record.begun) + budget
        rungs = ladder(problem, round(min(40, max(3, 1.5 * budget**0.5))))
        states = [problem.space.largest()]
        for i, rung in enumerate(rungs):
            allowance = max(1, (end - len(record.begun)) // (len(rungs) - i))
            width = max(1, min(len(states), allowance // 2))
            ways = min(self.candidates, max(2, allowance // width))
            candidates = dict.fromkeys(
                there
                for state in states[:width]
                for there in self._ways(problem, damage, state, rung, ways, random)
            )
            fresh = [subnet for subnet in candidates if subnet not in record.begun][:allowance]
            values = yield from record.ask(fresh, keep=self.trajectories)
            ranked = sorted((-value, i) for i, value in enumerate(values) if value is not None)
            states = [fresh[i] for _, i in ranked[: self.trajectories]] or states

    def _ways(
        self,
        problem: Problem,
        damage: Damage,
        state: Subnet,
        rung: float,
        count: int,
        random: random.Random,
    ) -> list[Subnet]:
        """Ways from ``state`` down to ``rung``: by losses, evenly, by losses with some noise."""
        made = [damage.descend(state, rung), even_share(problem, state, rung)]
        made += [damage.descend(state, rung, random) for _ in range(count - 2)]
        return made[:count]
