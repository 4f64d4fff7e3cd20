"""What fn3 chooses by: rows for subnets, the model of the scores, the area under a front."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nestify.explore.surrogate import gaussian_process as module
from nestify.explore.surrogate.encoding import Genes
from nestify.explore.surrogate.gaussian_process import Surrogate
from nestify.explore.surrogate.hypervolume import Staircase
from nestify.space import SearchSpace, Unit

UNITS = (
    Unit("c", "channel", 20, 3, 8),
    Unit("h", "head", 1),
    Unit("l", "layer", 4, 0),
    Unit("p", "path", 8, 2),
)


@given(st.integers(0, 2**32))
def test_rows_and_subnets_are_one_to_one(seed: int) -> None:
    space = SearchSpace(UNITS)
    genes = Genes(space)
    rows = np.random.default_rng(seed).integers(0, genes.most + 1, size=(5, len(UNITS)))
    subnets = [genes.subnet(row) for row in rows]
    assert genes.rows(subnets).tolist() == rows.tolist()
    columns = genes.sizes(rows)
    for i, subnet in enumerate(subnets):
        space.validate(subnet)
        assert {name: int(column[i]) for name, column in columns.items()} == dict(subnet)
        assert genes.shares(rows)[i].tolist() == [subnet[u.name] / u.size for u in UNITS]
    assert genes.subnet(genes.most) == space.largest()
    assert genes.subnet(0 * genes.most) == space.smallest()


def points(count: int, coordinates: int) -> Any:
    return np.random.default_rng(1).uniform(-2, 0, size=(count, coordinates))


@pytest.mark.parametrize("count", [1, 3, 40])
def test_the_gradient_is_that_of_the_likelihood(count: int) -> None:
    x, y = torch.as_tensor(points(30, 5)), torch.randn(30, count).double()
    settings: Any = vars(module)["_Settings"](5)
    settings._logs += 0.3 * torch.randn(8)
    found = settings._gradient(x, y, count)
    alike = torch.linalg.qr(y.T, mode="r").R.T  # at most 30 columns, with the same products
    assert settings._gradient(x, alike, count).numpy() == pytest.approx(found.numpy())
    power = min(1.0, 10 / count)

    def loss(logs: torch.Tensor) -> torch.Tensor:
        settings._logs = logs
        normal = torch.distributions.MultivariateNormal(
            torch.zeros(30).double(), settings.covariance(x)
        )
        prior = 0.5 * (settings._sure * (logs - settings._usual) ** 2).sum()
        return prior - power * normal.log_prob(y.T).sum()

    at, step = settings._logs, 1e-5
    for i, direction in enumerate(torch.eye(8).double()):
        rise = loss(at + step * direction) - loss(at - step * direction)
        assert found[i].item() == pytest.approx(rise.item() / (2 * step), rel=1e-4, abs=1e-4)


def test_coordinates_that_decide_nothing_are_found_out() -> None:
    """Twenty coordinates, of which two decide: what was never seen is told well all the same."""

    def truth(x: Any) -> Any:
        return -(x[:, 3] ** 2) + x[:, 11]

    surrogate = Surrogate()
    surrogate.fit(points(100, 20)[:80], truth(points(100, 20)[:80]))
    mean, deviation = surrogate.predict(points(100, 20)[80:])
    error = np.abs(mean - truth(points(100, 20)[80:]))
    assert error.mean() < 0.15 * truth(points(100, 20)).std()
    assert (error < 3 * deviation + 1e-3).mean() > 0.9


def test_what_was_seen_is_told_as_it_was() -> None:
    x = points(40, 3)
    surrogate = Surrogate()
    surrogate.fit(x, np.sin(x).sum(1))
    mean, deviation = surrogate.predict(x)
    assert np.abs(mean - np.sin(x).sum(1)).max() < 0.05
    assert (deviation >= 0).all()


@pytest.mark.parametrize("value", [0.0, -3.0])
def test_values_that_are_all_alike(value: float) -> None:
    surrogate = Surrogate()
    surrogate.fit(points(6, 2), np.full(6, value))
    assert surrogate.predict(points(9, 2))[0] == pytest.approx(np.full(9, value))


def test_points_seen_twice_are_no_trouble() -> None:
    x = np.repeat(points(4, 2), 3, axis=0)
    surrogate = Surrogate()
    surrogate.fit(x, x[:, 0])
    assert np.isfinite(surrogate.predict(x)[0]).all()


@pytest.mark.parametrize("columns", [(), (3,)])
def test_what_is_left_out_is_told_by_the_others(columns: tuple[int, ...]) -> None:
    x, y = points(12, 2), np.random.default_rng(3).standard_normal((12, *columns))
    surrogate: Any = Surrogate()
    surrogate.fit(x, y)
    above, deviation = surrogate.left_out()
    settings, others = surrogate._settings, torch.arange(12) != 5
    seen = torch.as_tensor(x)
    known = settings.covariance(seen)[others][:, others]
    with_it = settings.between(seen[5:6], seen)[:, others]
    means = with_it @ torch.linalg.solve(known, torch.as_tensor(y - y.mean(0))[others])
    assert (y - y.mean(0))[5] - means.numpy()[0] == pytest.approx(above[5], rel=1e-3)
    left = with_it @ torch.linalg.solve(known, with_it.T)
    variance = settings.covariance(seen)[5, 5] - left[0, 0]
    spread = y.std(0) if y.ndim == 1 else np.sqrt(y.var(0).mean())
    assert deviation[5] == pytest.approx(spread * variance.sqrt().item())


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_single_precision_foretells_as_much(noise: float) -> None:
    """Hits and misses of many samples, with points that were seen twice."""
    x = np.concatenate([points(150, 6), points(10, 6)])
    drawn = np.random.default_rng(4)
    easy = drawn.standard_normal(60)
    margins = x @ drawn.standard_normal((6, 1)) + noise * drawn.standard_normal((160, 60))
    hits = (margins > easy).astype(np.float64)
    double, single = Surrogate(), Surrogate()
    double.fit(x, hits)
    single.fit(x, hits.astype(np.float32))
    asked = np.random.default_rng(5).standard_normal((40, 6))
    (means, deviations), (near, sure) = double.predict(asked), single.predict(asked)
    assert near.dtype == np.float32, "the larger part of the work is in the precision of the values"
    assert near == pytest.approx(means, abs=2e-3)
    assert sure == pytest.approx(deviations, abs=2e-3)
    assert single.noise == pytest.approx(double.noise, rel=1e-2)


SHARES = st.integers(1, 20).map(lambda k: k / 20)
POINTS = st.lists(st.tuples(SHARES, SHARES), min_size=1, max_size=8)


def area(rows: list[tuple[float, float]], base: list[tuple[float, float]]) -> float:
    """Between the best score within each cost, and nothing: from the least cost of ``base``."""
    start = min(cost for cost, _ in base)
    total, best = 0.0, 0.0
    steps = [*sorted((max(cost, start), score) for cost, score in rows), (1.0, 0.0)]
    for (cost, score), (following, _) in itertools.pairwise(steps):
        best = max(best, score)
        total += (following - cost) * best
    return total


@given(POINTS, st.tuples(SHARES, SHARES))
def test_growth_is_that_of_the_area(known: Any, new: Any) -> None:
    costs, scores = np.array(known).T
    grown = Staircase(costs, scores, 1.0).growth(np.array([new[0]]), np.array([new[1]]))[0]
    expected = area([*known, new], known) - area(known, known)
    assert grown == pytest.approx(expected, abs=1e-12)


@given(POINTS, POINTS, st.tuples(SHARES, SHARES))
def test_growth_is_beside_the_points_that_came_after(known: Any, more: Any, new: Any) -> None:
    stairs = Staircase(*np.array(known).T, 1.0)
    more = [(cost, score) for cost, score in more if cost >= min(known)[0]]
    for cost, score in more:
        stairs = stairs.with_point(cost, score)
    grown = stairs.growth(np.array([new[0]]), np.array([new[1]]))[0]
    expected = area([*known, *more, new], known) - area([*known, *more], known)
    assert grown == pytest.approx(expected, abs=1e-12)


def test_expected_growth_is_the_mean_growth_of_drawn_scores() -> None:
    rng = np.random.default_rng(3)
    stairs = Staircase(rng.random(6), rng.random(6), end=1.0)
    costs, means, spread = rng.random(9), rng.random(9), rng.uniform(0, 0.3, 9)
    spread[0] = 0  # a score that is known
    drawn = means + spread * rng.standard_normal((20000, 9))
    mean = np.mean([stairs.growth(costs, row) for row in drawn], axis=0)
    assert stairs.expected_growth(costs, means, spread) == pytest.approx(mean, abs=3e-3)


def test_noise_is_what_the_coordinates_do_not_explain() -> None:
    x, drawn = points(200, 3), np.random.default_rng(0).standard_normal(200)
    quiet, loud = Surrogate(), Surrogate()
    quiet.fit(x, x.sum(1) + 0.01 * drawn)
    loud.fit(x, x.sum(1) + 0.4 * drawn)
    assert 0.2 < loud.noise < 0.6
    assert quiet.noise < 0.2 * loud.noise
