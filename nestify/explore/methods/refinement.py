"""Refining a front: the widest gap between two of its points is filled, units trade steps.

Between two neighbours of the front, at most (difference in cost) x (difference in score) of the
dominated area is still to be won. The widest such gap gets candidates in its middle: between the
two, down from the upper one, and each of the two with a step traded between two units.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterator

from nestify.explore.methods.descent import Damage, Record
from nestify.explore.methods.steps import between, grown, subnet_with
from nestify.explore.rounds import Problem, Rounds
from nestify.pareto import pareto
from nestify.space import Subnet

__all__ = ["refine"]

_ROUND = 4  # candidates for a gap
_TRIES = 12  # trades that are drawn for one that fits


def refine(problem: Problem, record: Record, damage: Damage, budget: int) -> Rounds:
    """Score candidates for gaps until ``budget`` subnets are begun, or no gap gives a new one."""
    random = problem.random()
    tries: Counter[tuple[Subnet, Subnet]] = Counter()
    while len(record.begun) < budget and problem.left > 0:
        gap = _widest(problem, record, tries)
        if gap is None:
            return
        tries[gap] += 1
        found = dict.fromkeys(_candidates(problem, damage, random, *gap))
        fresh = [subnet for subnet in found if subnet not in record.begun]
        yield from record.ask(fresh[: min(_ROUND, budget - len(record.begun))], keep=1)


def _widest(
    problem: Problem, record: Record, tries: Counter[tuple[Subnet, Subnet]]
) -> tuple[Subnet, Subnet] | None:
    """The neighbours with the most area between them; each try makes it count for less."""
    subnets = list(record.scores)
    costs = [float(price) for price in problem.prices(subnets)]
    scores = list(record.scores.values())
    front = pareto(costs, scores)
    most = 0.0
    widest = None
    for a, b in itertools.pairwise(front):
        gap = subnets[a], subnets[b]
        area = (costs[b] - costs[a]) * (scores[b] - scores[a]) / 2.0 ** tries[gap]
        if area > most and tries[gap] < _TRIES:
            most, widest = area, gap
    return widest


def _candidates(
    problem: Problem, damage: Damage, random: random.Random, low: Subnet, high: Subnet
) -> Iterator[Subnet]:
    """Subnets that cost at most what the middle of a gap does, or its end where units trade."""
    cheap, dear = (float(price) for price in problem.prices([low, high]))
    share = random.uniform(0.3, 0.7)
    middle = cheap + share * (dear - cheap)
    yield between(problem.space, low, high, share)
    yield damage.descend(high, middle)
    yield damage.descend(high, middle, random)
    traded = [
        _traded(problem, damage, random, high, dear),
        _traded(problem, damage, random, low, middle),
    ]
    yield from (subnet for subnet in traded if subnet is not None)


def _traded(
    problem: Problem, damage: Damage, random: random.Random, here: Subnet, most: float
) -> Subnet | None:
    """``here`` with one unit larger, and others smaller until it costs at most ``most``."""
    units = [unit for unit in problem.space.units if here[unit.name] < unit.size]
    if not units:
        return None
    rates = dict(zip(problem.space.units, damage.rates(here).tolist(), strict=True))
    (unit,) = random.choices(units, [rates[unit] for unit in units])
    larger = subnet_with(here, {unit.name: grown(unit, here[unit.name], damage.window)})
    if problem.price(larger) <= most:
        return larger
    return damage.descend(larger, most, random, but=unit)
