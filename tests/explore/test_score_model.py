"""What subnets are foretold to score, of samples that each are a hit or a miss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nestify.explore.surrogate import score_model as module
from nestify.explore.surrogate.gaussian_process import Surrogate
from nestify.explore.surrogate.score_model import Forecast

SAMPLES = 300


def points(count: int) -> Any:
    return np.random.default_rng(1).uniform(-2, 0, size=(count, 8))


def hits(x: Any, *, lowest: float = -2.2, units: int = 3) -> Any:
    """Each sample is hit where all of some units are large enough for it."""
    rng = np.random.default_rng(2)
    found = np.ones((len(x), SAMPLES), bool)
    for _ in range(units):
        unit, least = rng.integers(8, size=SAMPLES), rng.uniform(lowest, -1.5, SAMPLES)
        found &= x[:, unit] > least
    return found.astype(float)


def fitted(x: Any, samples: Any, whole: Any = None) -> Forecast:
    made = Forecast()
    made.fit(x, samples.mean(1), samples, np.ones(len(x), bool) if whole is None else whole)
    return made


def error(found: Any, x: Any) -> float:
    return float(np.abs(found - hits(x).mean(1)).mean())


def test_hits_and_misses_tell_more_than_their_mean() -> None:
    x = points(160)
    seen, unseen = x[:60], x[60:]
    alone = Surrogate()
    alone.fit(seen, hits(seen).mean(1))
    found = fitted(seen, hits(seen)).at(unseen)
    assert error(found.means, unseen) < 0.95 * error(alone.predict(unseen)[0], unseen)
    assert (found.likely >= found.means).all()
    off = np.abs(found.means - hits(unseen).mean(1)) / found.spreads
    assert 0.7 < (off < 2).mean() <= 1


def test_where_their_mean_tells_more_it_foretells() -> None:
    """Every sample needs one unit: how many are hit is a plain sum."""
    x = points(60)
    samples = hits(x, units=1)
    alone = Surrogate()
    alone.fit(x[:40], samples[:40].mean(1))
    found = fitted(x[:40], samples[:40]).at(x[40:])
    assert found.means.tolist() == alone.predict(x[40:])[0].tolist()


def test_the_process_of_scores_is_left_alone_while_hits_are_foretold_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, made, counts = points(160), Forecast(), []
    fit = made._whole.fit
    monkeypatch.setattr(made._whole, "fit", lambda x, y: counts.append(len(x)) or fit(x, y))
    for count in (40, 48, 56, 64, 88):
        seen = hits(x[:count])
        made.fit(x[:count], seen.mean(1), seen, np.ones(count, bool))
        alone = fitted(x[:count], seen).at(x[100:])
        assert error(made.at(x[100:]).means, x[100:]) < 1.3 * error(alone.means, x[100:])
    assert counts == [40, 48, 56, 88], "the first, second, third and fifth time"


@pytest.mark.parametrize(("low", "high"), [(0, 100), (-1, 1), (-7e90, -3e90)])
def test_any_two_values_are_a_miss_and_a_hit(low: float, high: float) -> None:
    x, width = points(60), high - low
    one = fitted(x[:40], hits(x[:40])).at(x[40:])
    other = fitted(x[:40], low + width * hits(x[:40])).at(x[40:])
    assert (other.means - low) / width == pytest.approx(one.means, abs=1e-4)
    assert other.spreads / width == pytest.approx(one.spreads, rel=1e-2)


def test_other_scores_are_foretold_by_their_mean() -> None:
    x = points(60)
    samples = hits(x[:40]) * np.linspace(0.5, 1, SAMPLES)  # partly right
    alone = Surrogate()
    alone.fit(x[:40], samples.mean(1))
    means, deviations = alone.predict(x[40:])
    found = fitted(x[:40], samples).at(x[40:])
    assert found.means.tolist() == means.tolist()
    assert found.spreads.tolist() == np.hypot(deviations, alone.noise).tolist()


def test_rows_that_are_estimates_in_part_are_used_too() -> None:
    x = points(160)
    samples, whole = hits(x[:60]), np.arange(60) % 3 > 0
    hard = samples[whole].mean(0)[100:]
    samples[~whole, 100:] = hard + samples[~whole, :100].mean(1, keepdims=True) - hard.mean()
    unseen = x[60:]
    mixed, fewer = fitted(x[:60], samples, whole), fitted(x[:60][whole], samples[whole])
    assert error(mixed.at(unseen).means, unseen) < error(fewer.at(unseen).means, unseen)


def test_samples_that_no_subnet_changes_are_set() -> None:
    x = points(9)
    samples = np.tile([1.0, 0.0, 1.0], (9, 1))
    assert fitted(x, samples).at(x).means == pytest.approx(np.full(9, 2 / 3))
    samples[:5, 1] = 1
    found = fitted(x, samples).at(points(30)).means
    assert (found >= 2 / 3 - 1e-9).all()
    assert (found <= 1 + 1e-9).all()


def test_parts_of_a_row_of_points_are_foretold_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    x = points(60)
    made = fitted(x[:40], hits(x[:40]))
    together = made.at(x)
    monkeypatch.setattr(module, "_ROOM", 7 * module._MOST)
    for one, other in zip(together, made.at(x), strict=True):
        assert other == pytest.approx(one, rel=1e-4)


def test_some_of_many_samples_stand_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    x = points(160)
    seen, unseen = x[:60], x[60:]
    samples = np.concatenate([hits(seen), np.ones((60, 50)), np.zeros((60, 25))], axis=1)
    share, most = 300 / 375, 100
    monkeypatch.setattr(module, "_MOST", most)
    found = (fitted(seen, samples).at(unseen).means - 50 / 375) / share
    assert error(found, unseen) < 1.5 * error(fitted(seen, hits(seen)).at(unseen).means, unseen)
