"""The search methods: what each visits, what it asks for, how near the true front it ends."""

from __future__ import annotations

import dataclasses
import itertools
import math
import zlib
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import pytest

from nestify.errors import UsageError
from nestify.explore.methods import METHODS, fn3, parse_method
from nestify.explore.moves import choices, fewer, shrunk
from nestify.explore.protocol import Problem, Round, Scores
from nestify.space import SearchSpace, Subnet, Unit
from tests.fakes import FakeNested, chain


class Table:
    """Answers the rounds of a method from a formula, and notes them."""

    def __init__(
        self, nested: FakeNested, limit: int = 1 << 30, before: Mapping[str, float] | None = None
    ) -> None:
        self.nested, self.limit, self.before = nested, limit, before or {}
        self.scores: dict[Subnet, float] = {}
        self.rounds: list[Round] = []

    def prices(self, subnets: Any) -> Any:
        return np.asarray(self.nested.estimate(subnets).macs, dtype=np.float64)

    def run(self, method: str, seed: int = 0, most: float = math.inf) -> Table:
        budget = lambda: self.limit - len(self.scores)  # noqa: E731
        problem = Problem(self.nested.space, self.prices, seed, budget, most, self.before)
        rounds = parse_method(method).rounds(problem)
        try:
            asked = next(rounds)
            while True:
                self.rounds.append(asked)
                asked = rounds.send(self.answer(asked))
        except StopIteration:
            return self

    def answer(self, asked: Round) -> Scores:
        values: list[float | None] = []
        for subnet in asked.subnets:
            if subnet not in self.scores and len(self.scores) < self.limit:
                with self.nested.activate(subnet):
                    self.scores[subnet] = self.nested.score()
            values.append(self.scores.get(subnet))
        samples = [None if value is None else np.array([value]) for value in values]
        return Scores(values, [value is not None for value in values], samples)

    def hypervolume(self) -> float:
        """The area between the best score within each share of the full cost and the least one."""
        subnets = list(self.scores)
        costs = self.prices(subnets) / self.prices([self.nested.space.largest()])[0]
        with self.nested.activate(self.nested.space.smallest()):
            least = self.nested.score()
        rows = sorted(zip(costs.tolist(), self.scores.values(), strict=True))
        area, best = 0.0, least
        for (cost, score), (following, _) in itertools.pairwise([*rows, (1.0, 0.0)]):
            best = max(best, score)
            area += (following - cost) * (best - least)
        return area


class Hits(Table):
    """Tells which of 100 samples a subnet gets right: the easier ones."""

    def answer(self, asked: Round) -> Scores:
        found = super().answer(asked)
        hardness = np.linspace(0, 1, 100)
        told = [None if v is None else (hardness < v).astype(float) for v in found.values]
        means = [None if hits is None else float(hits.mean()) for hits in told]
        return Scores(means, found.whole, told)


def paths() -> FakeNested:
    """FN3's ResNeXt-29: nine units of eight paths."""
    units = [Unit(f"u{i}", "path", 8) for i in range(9)]
    return FakeNested(units, {f"u{i}": 0.02 + 0.01 * i for i in range(9)})


def everything(nested: FakeNested) -> Table:
    table = Table(nested)
    units = nested.space.units
    sizes = itertools.product(*(choices(unit) for unit in units))
    names = [unit.name for unit in units]
    table.answer(Round([Subnet(dict(zip(names, row, strict=True))) for row in sizes]))
    return table


def test_algorithm_1_needs_no_more_evaluations_than_the_paper_counts() -> None:
    """C = 10, K = 3 on 9 x 8 paths: 1,672 in the paper, where random removal takes 7,200."""
    counts = [len(Table(paths()).run("algorithm1", seed).scores) for seed in range(10)]
    assert max(counts) <= 1672
    assert min(counts) > 1000, "this is the algorithm, not a shortcut"


def test_algorithm_1_goes_down_block_by_block() -> None:
    table = Table(paths()).run("algorithm1")
    sizes = [{sum(subnet.values()) for subnet in asked.subnets} for asked in table.rounds]
    assert sizes == [{72 - i} for i in range(64)], "one block a step, to one path a unit"
    assert all(asked.keep == 3 for asked in table.rounds[1:])
    assert max(len(asked.subnets) for asked in table.rounds) <= 30


def test_a_window_makes_larger_steps() -> None:
    nested = chain(5, size=64, step=1)
    literal = Table(nested).run("algorithm1{trajectories=1,candidates=2}")
    wide = Table(nested).run("algorithm1{trajectories=1,candidates=2,window=0.125}")
    assert len(literal.rounds) > 6 * len(wide.rounds)


def test_greedy_keeps_the_cheapest_step() -> None:
    """The unit whose loss per MAC saved is least goes first, and the other judge may differ."""
    nested = chain(3, u0=0.5, u1=0.1, u2=0.5)
    table = Table(nested).run("greedy")
    first, second = table.rounds[1:3]
    assert len(first.subnets) == 3
    changed = [name for name, size in second.subnets[0].items() if size < 64]
    assert set(changed) >= {"u1"}
    assert len(Table(nested).run("greedy{judge=score}").scores) > 20
    with pytest.raises(UsageError, match="judge of method greedy must be one of rate, score"):
        parse_method("greedy{judge=luck}")


@pytest.mark.parametrize("hits", [False, True])
def test_fn3_steps_down_at_random_where_samples_are_not_told(
    hits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    thinned = fn3._Search.thinned
    monkeypatch.setattr(
        fn3._Search, "thinned", lambda search, n: counts.append(n) or thinned(search, n)
    )
    table = Hits(chain(4), limit=64) if hits else Table(chain(4), limit=64)
    table.run("fn3")
    assert counts == [0 if hits else 4]
    assert len(table.scores) == 64


@pytest.mark.parametrize("seed", range(3))
def test_fn3_ends_near_the_true_front(seed: int) -> None:
    """On spaces that can be scored whole, at most 1% of the dominated area is missed."""
    rng = np.random.default_rng(seed)
    worth = {f"u{i}": float(w) for i, w in enumerate(rng.lognormal(-2, 1, 4))}
    nested = chain(4, size=64, step=8, **worth)
    best = everything(nested).hypervolume()
    found = Table(nested, limit=256).run("fn3", seed)
    assert len(found.scores) <= 256
    assert best - found.hypervolume() <= 0.01 * best


@pytest.mark.parametrize("nested", [paths(), chain(12, u2=2.0, u7=2.0)], ids=["paths", "chain"])
def test_fn3_needs_a_tenth_of_algorithm_1(nested: FakeNested) -> None:
    literal = Table(nested).run("algorithm1")
    quick = Table(nested, limit=len(literal.scores) // 10).run("fn3")
    assert quick.hypervolume() >= literal.hypervolume() - 1e-3


def test_fn3_looks_for_what_a_bound_allows() -> None:
    nested = chain(12, u2=2.0, u7=2.0)
    bound = 0.3 * Table(nested).prices([nested.space.largest()])[0]

    def best(table: Table) -> float:
        subnets = list(table.scores)
        costs = table.prices(subnets)
        return max(table.scores[s] for s, c in zip(subnets, costs, strict=True) if c <= bound)

    def ends(most: float) -> float:
        return sum(best(Table(nested, 64).run("fn3", seed, most)) for seed in range(3))

    assert ends(bound) > ends(math.inf)


def test_fn3_ends_after_its_evaluations() -> None:
    assert len(Table(chain(6)).run("fn3{evaluations=37}").scores) == 37


class ByChance(Table):
    """Scores that differ by up to 2 points without a reason, always the same for a subnet."""

    def answer(self, asked: Round) -> Scores:
        answered = super().answer(asked)
        chance = [zlib.crc32(repr(dict(subnet)).encode()) / 2**32 for subnet in asked.subnets]
        pairs = zip(answered.values, chance, strict=True)
        values = [None if e is None else e + 0.02 * c for e, c in pairs]
        return dataclasses.replace(answered, values=values)


def test_fn3_goes_on_where_scores_differ_by_chance() -> None:
    """What no model of the scores can promise may still lie above the front."""
    table = ByChance(chain(3, size=64, step=2)).run("fn3{evaluations=300}")
    assert len(table.scores) == 300


def test_fn3_ends_when_all_is_scored() -> None:
    nested = chain(2, size=32, step=8)
    assert len(Table(nested).run("fn3").scores) <= 16


def test_candidates_of_fn3_race_for_what_the_front_lacks() -> None:
    """A score is worth what it has above the best one known within the candidate's cost."""
    table = Table(chain(6), limit=60).run("fn3")
    first, *others = table.rounds
    assert first.keep == 0
    known = dict.fromkeys(first.subnets)
    for asked in others:
        assert asked.keep == (len(asked.subnets) + 1) // 2
        costs = table.prices(list(known))
        for i, subnet in enumerate(asked.subnets):
            within = [
                s for s, c in zip(known, costs, strict=True) if c <= table.prices([subnet])[0]
            ]
            assert asked.merit(i).base == max(table.scores[s] for s in within)
        known |= dict.fromkeys(asked.subnets)


@pytest.mark.parametrize("name", METHODS)
def test_methods_depend_on_nothing_but_seed_and_scores(name: str) -> None:
    first, second = (list(Table(chain(6), 80).run(name, 4).scores) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("name", METHODS)
def test_methods_serve_every_kind_of_unit(name: str) -> None:
    """Units of one choice, layers that may all go, steps that do not divide, a mix of kinds."""
    units = (
        Unit("c", "channel", 20, 3, 8),
        Unit("h", "head", 1),
        Unit("l", "layer", 4, 0),
        Unit("p", "path", 8, 2),
    )
    nested = FakeNested(units, {"c": 0.2, "l": 0.5, "p": 0.1})
    table = Table(nested, 60).run(name)
    assert len(table.scores) > 3
    for subnet in table.scores:
        nested.space.validate(subnet)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("limit", [1, 2, 3, 7])
def test_methods_end_when_nothing_may_be_scored(name: str, limit: int) -> None:
    assert len(Table(chain(4), limit).run(name).scores) <= limit


@pytest.mark.parametrize("name", METHODS)
def test_subnets_that_cost_nothing_are_no_trouble(name: str) -> None:
    """An embedding has units and no MACs."""

    class Free(Table):
        def prices(self, subnets: Any) -> Any:
            return 0.0 * super().prices(subnets)

    assert 3 <= len(Free(chain(3), 30).run(name).scores) <= 30


def test_a_space_of_one_subnet_is_no_trouble() -> None:
    nested = FakeNested((Unit("u", "head", 1),), {})
    for name in METHODS:
        assert set(Table(nested, 40).run(name).scores) == {Subnet({"u": 1})}


def test_evolution_beats_draws() -> None:
    nested = chain(12, u2=2.0, u7=2.0)
    drawn = Table(nested, 300).run("random").hypervolume()
    evolved = Table(nested, 300).run("evolution").hypervolume()
    assert evolved > drawn + 0.01


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fn4", "unknown method 'fn4': the methods are fn3, .*; did you mean 'fn3'?"),
        ("fn3{", "unknown method"),
        ("fn3{speed=3}", "method fn3 has no option 'speed'; valid: candidates, window"),
        ("fn3{window=wide}", "option window of method fn3 must be float, not 'wide'"),
        ("fn3{window=0.1,window=0.5}", "option window of method fn3 is given twice"),
        ("fn3{window=0}", r"window of method fn3 must be a number in \(0, 1\]; got 0.0"),
        ("fn3{window=nan}", r"window of method fn3 must be a number in \(0, 1\]; got nan"),
        ("fn3{candidates=0}", "candidates of method fn3 must be a whole number from 1 on; got 0"),
        ("fn3{evaluations=-1}", "evaluations of method fn3 must be .* from 1 on; got -1"),
        ("algorithm1{candidates=-1}", "candidates of method algorithm1 .* from 1 on; got -1"),
        ("algorithm1{trajectories=0}", "trajectories of method algorithm1 .* from 1 on; got 0"),
        ("algorithm1{window=-3}", r"window of method algorithm1 must be .* in \[0, 1\]; got -3"),
        ("algorithm1{window=inf}", r"window of method algorithm1 must be .* in \[0, 1\]; got inf"),
        ("algorithm1{window=nan}", r"window of method algorithm1 must be .* in \[0, 1\]; got nan"),
        ("greedy{window=2}", r"window of method greedy must be a number in \(0, 1\]; got 2"),
        ("greedy{judge=me}", "judge of method greedy must be one of rate, score; got 'me'"),
        ("evolution{population=2}", "population of method evolution .* from 4 on; got 2"),
        ("evolution{generations=-1}", "generations of method evolution .* from 1 on; got -1"),
        ("random{count=-5}", "count of method random must be a whole number from 1 on; got -5"),
        ("uniform{count=0}", "count of method uniform must be a whole number from 1 on; got 0"),
    ],
)
def test_wrong_methods_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_method(text)


def test_every_option_has_its_range() -> None:
    """One that nobody checks would end in a crash, or be taken for another, deep in a search."""
    for name in METHODS:
        for option in dataclasses.fields(cast(Any, parse_method(name))):
            said = "nobody" if option.type == "str" else "-7"
            with pytest.raises(UsageError, match=f"{option.name} of method {name} must be"):
                parse_method(f"{name}{{{option.name}={said}}}")


def test_steps() -> None:
    unit = Unit("u", "channel", 20, 3, 8)
    assert list(choices(unit)) == [3, 8, 16, 20]
    assert [fewer(unit, 20, n) for n in (1, 4, 5, 13, 99)] == [16, 16, 8, 3, 3]
    assert [shrunk(unit, size) for size in (3, 8, 16, 20)] == [3, 3, 8, 16]
    assert cast(Any, SearchSpace((unit,))).num_subnets == 4
