"""FN3's search (Cui et al., 2020, section 4) for all costs at once, with a model of the scores.

What stays of Algorithm 1: from the best subnets known, candidates are made by steps within a window
dp of a unit, C of them are scored, and the best go on. What differs: it does not go down from the
largest subnet block by block, but begins with even shares of every unit and, unless it is told
which samples are hit, some random steps down, which tell units apart; and the whole front of score
and cost goes on in place of K trajectories. Candidates also trade steps of two units, and
mix two subnets. And few are scored: a Gaussian process, fitted to the scores so far, foretells some
thousand a round. In turns that one is scored by which the area under the front is likely to grow
most, and the one by which it grows most on average: what the process takes for noise lifts one or
the other subnet above the front. Growth counts by the work that it takes, of which subnets that
begin alike share a part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nestify.explore.pareto import pareto
from nestify.explore.protocol import Merit, Problem, Round, Rounds, Samples, check_options
from nestify.explore.surrogate.encoding import Genes, Rows
from nestify.explore.surrogate.hypervolume import Staircase
from nestify.explore.surrogate.score_model import Forecast, are_hits
from nestify.explore.surrogate.shared_work import Work
from nestify.support.arguments import real, whole

__all__ = ["Fn3"]

_EVEN = 16  # even shares to begin with, at most a sixth of the evaluations
_THINNED = 16  # one in so many of the evaluations begins with random steps down
_LEAST = 0.1  # of the cost, where the last of these ends
_WALK = 4  # steps down for each that there is, at most
_GENERATIONS = 4  # of candidates, each from the likely front of the last, before any is scored
_CHILDREN = 512  # a generation
_OVERHEAD = 0.1  # of an evaluation's work, which it takes however little is left to compute
_IDLE = 5  # rounds in which nothing new is found, after which nothing is left
_HUGE = 1e100  # beyond which squares of scores have no room
_FITTED = 512  # scores that the model is fitted to, the latest

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Fn3:
    """Score ``candidates`` (C) a round, made by steps of at most ``window`` (dp) of a unit.

    It ends after ``evaluations``, or when the search allows no more.

    Raises:
        UsageError: an option out of range.
    """

    candidates: int = 8
    window: float = 0.125
    evaluations: int = 768

    def __post_init__(self) -> None:
        check_options(
            self, candidates=whole(1), window=real(0, 1, above=True), evaluations=whole(1)
        )

    def rounds(self, problem: Problem) -> Rounds:
        """Yield even shares of every unit, random steps down from all unless hits are told, then
        candidates.
        """
        search = _Search(problem, self.window)
        left = min(problem.left, self.evaluations)
        yield from search.score(search.even(min(_EVEN, max(3, left // 6))))
        thinned = search.thinned(0 if search.tells_hits() else left // _THINNED)
        for start in range(0, len(thinned), self.candidates):
            yield from search.score(thinned[start : start + self.candidates])
        idle = 0
        while idle < _IDLE and search.scores:
            left = min(problem.left, self.evaluations - len(search.scores))
            if left <= 0:
                return
            chosen = search.promising(min(self.candidates, left))
            idle = 0 if len(chosen) else idle + 1
            yield from search.score(chosen)


class _Search:
    """What has been scored so far, and what to score next. Costs are shares of the largest's."""

    def __init__(self, problem: Problem, window: float) -> None:
        self.scores: list[float] = []  # of subnets that were stopped: estimates
        self._rows: list[Rows] = []
        self._known_costs: list[float] = []
        self._whole: list[bool] = []
        self._samples: list[Samples] = []
        self._problem, self._genes = problem, Genes(problem.space)
        self._full = max(1.0, problem.price(problem.space.largest()))  # some have no MACs at all
        self._most = min(1.0, problem.most / self._full)
        self._steps = np.maximum(1, np.round(window * self._genes.most)).astype(np.int64)
        self._random = np.random.default_rng(problem.seed)
        self._forecast = Forecast()
        before = [problem.before.get(unit.name, 0.0) for unit in problem.space.units]
        self._work = Work(np.array(before), self._genes.most)

    def even(self, count: int) -> Rows:
        """The largest subnet, and one share of every unit from the largest cost of use down.

        Costs are even in their square root, as they go with width squared.
        """
        rows = np.round(np.linspace(1, 0, 256)[:, None] * self._genes.most).astype(np.int64)
        costs = self._costs(rows)
        useful, roots = rows[costs <= self._most], costs[costs <= self._most] ** 0.5
        wanted = np.linspace(roots[0], roots[-1], count - 1)
        return np.concatenate([rows[:1], useful[np.abs(roots - wanted[:, None]).argmin(1)]])

    def thinned(self, count: int) -> Rows:
        """The largest subnet after random steps down, until it costs no more than a level: of use
        for the first row, a tenth of that for the last.
        """
        draw, most = self._random, self._genes.most
        levels = self._most * np.geomspace(1 - _LEAST, _LEAST, count)
        rows, high = np.tile(most, (count, 1)), np.arange(count)
        for _ in range(_WALK * int(most.sum())):
            high = high[(self._costs(rows[high]) > levels[high]) & rows[high].any(1)]
            if not len(high):
                break
            unit = draw.integers(len(most), size=len(high))
            rows[high, unit] -= draw.integers(1, self._steps[unit] + 1)
            rows[high] = rows[high].clip(0)
        return rows

    def tells_hits(self) -> bool:
        """Whether it was told which samples are hit, which tells units apart by itself."""
        return bool(self.scores) and are_hits(np.array(self._samples)[np.array(self._whole)])

    def score(self, rows: Rows) -> Rounds:
        """Have new rows scored; those clearly behind the better half are stopped."""
        rows = rows[sorted(np.unique(rows, axis=0, return_index=True)[1])]
        fresh = rows[self._unscored(rows)]
        if not len(fresh):
            return
        subnets, costs = [self._genes.subnet(row) for row in fresh], self._costs(fresh)
        if self.scores:
            answer = yield Round(subnets, (len(fresh) + 1) // 2, self._merits(costs))
        else:
            answer = yield Round(subnets)
        told = zip(fresh, costs.tolist(), answer.values, answer.whole, answer.samples, strict=True)
        for row, cost, value, entire, samples in told:
            if value is not None and samples is not None:
                self._rows.append(row)
                self._known_costs.append(cost)
                self.scores.append(min(max(value, -_HUGE), _HUGE))
                self._whole.append(entire)
                self._samples.append(samples.clip(-_HUGE, _HUGE))
        self._work.note(fresh)

    def _merits(self, costs: Floats) -> list[Merit]:
        """What a score is worth: by how much it exceeds the best one known within that cost."""
        return [Merit(base) for base in self._stairs().best(costs).tolist()]

    def promising(self, count: int) -> Rows:
        """The new rows by which the area under the front is likely to grow most for their work."""
        latest = slice(-_FITTED, None)
        self._forecast.fit(
            self._features(np.array(self._rows[latest])),
            np.array(self.scores[latest]),
            np.array(self._samples[latest]),
            np.array(self._whole[latest]),
        )
        found = self._candidates()
        fresh = found.at(self._unscored(found.rows) & (found.costs <= self._most))
        return fresh.rows[self._chosen(fresh, count)]

    def _chosen(self, guesses: _Guesses, count: int) -> list[int]:
        """Places of rows, each chosen by what it adds to those before it: in turns by the growth
        that is likely, and by the growth on average if noise may lift any of them.
        """
        rows, costs, means, likely, spreads = guesses
        stairs, prints = self._stairs(), self._work.prints(rows)
        left, open_ = self._work.left(prints), np.ones(len(rows))
        chosen: list[int] = []
        while len(chosen) < min(count, len(rows)):
            growth = open_ * stairs.growth(costs, likely)
            if len(chosen) % 2 or not growth.any():
                growth = open_ * stairs.expected_growth(costs, means, spreads)
            worth = growth / (_OVERHEAD + left)
            place = int(worth.argmax())
            if worth[place] <= 0:
                break
            chosen.append(place)
            open_[place] = 0
            stairs = stairs.with_point(costs[place], likely[place])
            left = np.minimum(left, self._work.left_after(prints, place))
        return chosen

    def _candidates(self) -> _Guesses:
        """Generations of children: first of the front, then of what its children make likely."""
        rows, costs, scores = self._scored()
        found = self._guesses(rows[pareto(costs.tolist(), scores.tolist())])
        parents = found.rows
        for _ in range(_GENERATIONS):
            children = np.unique(self._children(parents), axis=0)
            found = found.joined(self._guesses(children[_unlike(children, found.rows)]))
            parents = found.rows[pareto(found.costs.tolist(), found.likely.tolist())]
        return found

    def _children(self, parents: Rows) -> Rows:
        """A step of one unit, steps of two units traded, or two subnets mixed."""
        draw, most = self._random, self._genes.most
        child = np.arange(_CHILDREN)
        one = parents[draw.integers(len(parents), size=_CHILDREN)]
        other = parents[draw.integers(len(parents), size=_CHILDREN)]
        unit, second = draw.integers(len(most), size=(2, _CHILDREN))
        stepped, traded = one.copy(), one.copy()
        steps = draw.integers(1, self._steps[unit] + 1)
        stepped[child, unit] += draw.choice([-1, 1], size=_CHILDREN) * steps
        traded[child, unit] += steps
        traded[child, second] -= draw.integers(1, self._steps[second] + 1)
        mixed = np.where(draw.random(one.shape) < 0.5, one, other)
        kind = draw.integers(3, size=(_CHILDREN, 1))
        return np.clip(np.choose(kind, [stepped, traded, mixed]), 0, most)

    def _guesses(self, rows: Rows) -> _Guesses:
        return _Guesses(rows, self._costs(rows), *self._forecast.at(self._features(rows)))

    def _features(self, rows: Rows) -> Floats:
        """Halving a unit counts the same wherever it starts, until next to nothing is left."""
        return np.log2(self._genes.shares(rows) + 0.1)

    def _stairs(self) -> Staircase:
        """The front that growth is measured by: of what a bound allows."""
        _, costs, scores = self._scored()
        used = costs <= self._most
        return Staircase(costs[used], scores[used], end=1.0)

    def _scored(self) -> tuple[Rows, Floats, Floats]:
        """What was scored on all the data: rows, costs and scores."""
        whole = np.array(self._whole)
        costs, scores = np.array(self._known_costs), np.array(self.scores)
        return np.array(self._rows)[whole], costs[whole], scores[whole]

    def _costs(self, rows: Rows) -> Floats:
        return self._problem.prices(self._genes.sizes(rows)) / self._full

    def _unscored(self, rows: Rows) -> NDArray[np.bool_]:
        return _unlike(rows, np.array(self._rows).reshape(-1, rows.shape[1]))


class _Guesses(NamedTuple):
    """Rows, what they cost, and what they may score, as :class:`Foretold` has it."""

    rows: Rows
    costs: Floats
    means: Floats
    likely: Floats
    spreads: Floats

    def at(self, which: NDArray[np.bool_]) -> _Guesses:
        rows, *columns = self
        return _Guesses(rows[which], *(column[which] for column in columns))

    def joined(self, other: _Guesses) -> _Guesses:
        pairs: Any = zip(self, other, strict=True)
        return _Guesses(*map(np.concatenate, pairs))


def _unlike(rows: Rows, others: Rows) -> NDArray[np.bool_]:
    """Which rows are not among ``others``."""
    known = {row.tobytes() for row in others}
    return np.array([row.tobytes() not in known for row in rows], dtype=bool)
