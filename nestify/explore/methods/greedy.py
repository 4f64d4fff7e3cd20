"""AutoSlim's greedy descent (Yu and Huang, 2019), judged by the score lost per cost saved.

From the largest subnet, every unit is tried one step smaller, and the cheapest step is kept, until
nothing can be removed. AutoSlim keeps the step of the best score; steps here save different
amounts, so a step is judged by what it saves too (``judge=score`` is AutoSlim's own rule).
"""

from __future__ import annotations

from dataclasses import dataclass

from nestify.explore.moves import shrunk, subnet_with
from nestify.explore.protocol import Merit, Problem, Round, Rounds, check_options
from nestify.space import Subnet
from nestify.support.arguments import one_of, real

__all__ = ["Greedy"]


@dataclass(frozen=True, slots=True)
class Greedy:
    """One trajectory, all units as candidates; ``window`` is the share of a unit a step removes.

    Raises:
        UsageError: a judge other than ``rate`` and ``score``, or a window out of range.
    """

    window: float = 0.125
    judge: str = "rate"

    def __post_init__(self) -> None:
        check_options(self, window=real(0, 1, above=True), judge=one_of("rate", "score"))

    def rounds(self, problem: Problem) -> Rounds:
        """Yield all single steps from where the descent stands."""
        here = problem.space.largest()
        (score,) = (yield Round([here])).values
        while problem.left > 0 and score is not None:
            steps = {
                unit.name: shrunk(unit, here[unit.name], self.window)
                for unit in problem.space.units
                if here[unit.name] > unit.minimum
            }
            if not steps:
                return
            children = [subnet_with(here, {name: size}) for name, size in steps.items()]
            merits = self._merits(problem, score, [here, *children])
            values = (yield Round(children, 1, merits)).values
            ranked = [
                ((value - merit.base) * merit.rate, -i)
                for i, (value, merit) in enumerate(zip(values, merits, strict=True))
                if value is not None
            ]
            if not ranked:
                return
            best = -max(ranked)[1]
            here, score = children[best], values[best]

    def _merits(self, problem: Problem, score: float, subnets: list[Subnet]) -> list[Merit]:
        prices = problem.prices(subnets)
        if self.judge == "score":
            return [Merit()] * (len(subnets) - 1)
        return [Merit(score, 1 / max(float(saved), 1.0)) for saved in prices[0] - prices[1:]]
