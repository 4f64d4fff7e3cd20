"""FN3's Algorithm 1, as its paper means it (Cui et al., 2020, section 4).

A state is how many blocks of each unit are removed, from the end. From each of at most K states,
C units are drawn; each gives a child with the next blocks of that unit removed. All children are
scored, the K best go on, until nothing can be removed. The paper counts one block a step; a window
of ``dp`` of the unit is the practical choice. As printed, the algorithm draws from what is in the
window and not in the window, which is nothing, and shares one window between trajectories; this is
the reading with a window each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from nestify.explore.moves import fewer, subnet_with
from nestify.explore.protocol import Problem, Round, Rounds, check_options
from nestify.space import Subnet, Unit
from nestify.support.arguments import real, whole

__all__ = ["Algorithm1"]


@dataclass(frozen=True, slots=True)
class Algorithm1:
    """Keep the ``trajectories`` (K) best of the ``candidates`` (C) children of each.

    ``window`` (dp) is the share of a unit that a step removes; 0 is the paper's one block.

    Raises:
        UsageError: an option out of range.
    """

    trajectories: int = 3
    candidates: int = 10
    window: float = 0.0

    def __post_init__(self) -> None:
        check_options(self, trajectories=whole(1), candidates=whole(1), window=real(0, 1))

    def rounds(self, problem: Problem) -> Rounds:
        """Yield the children of each step, best scores first to go on."""
        random = problem.random()
        states = [problem.space.largest()]
        yield Round(states)
        while problem.left > 0:
            children: dict[Subnet, None] = {}
            for state in states:
                open_units = list(self._open(problem, state))
                drawn = random.sample(open_units, min(self.candidates, len(open_units)))
                children |= {self._child(state, unit): None for unit in drawn}
            if not children:
                return
            found = list(children)
            scores = yield Round(found, keep=self.trajectories)
            ranked = [(-value, i) for i, value in enumerate(scores.values) if value is not None]
            states = [found[i] for _, i in sorted(ranked)[: self.trajectories]]
            if not states:
                return

    def _open(self, problem: Problem, state: Subnet) -> Iterator[Unit]:
        return (unit for unit in problem.space.units if state[unit.name] > unit.minimum)

    def _child(self, state: Subnet, unit: Unit) -> Subnet:
        step = max(1, math.ceil(self.window * unit.size))
        return subnet_with(state, {unit.name: fewer(unit, state[unit.name], step)})
