"""Racing: nobody who would be kept is stopped, but for the risk that is taken; most others are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestify.explore.protocol import Merit
from nestify.explore.racing import behind, stages


def ranked(means: list[float]) -> list[int]:
    return sorted(range(len(means)), key=lambda i: (-means[i], i))


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8), st.integers(1, 8), st.integers(0, 99))
def test_the_leaders_of_what_was_seen_go_on(rates: list[float], keep: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    samples = [(rng.random(64) < rate).astype(float) for rate in rates]
    stopped = behind(samples, [Merit()] * len(rates), keep, 640)
    leaders = ranked([float(x.mean()) for x in samples])[:keep]
    assert not stopped & set(leaders)


@given(st.lists(st.integers(0, 64), min_size=3, max_size=8, unique=True), st.integers(1, 2))
def test_once_all_is_seen_those_behind_are_those_behind(right: list[int], keep: int) -> None:
    samples = [np.concatenate([np.ones(n), np.zeros(64 - n)]) for n in right]
    stopped = behind(samples, [Merit()] * len(right), keep, 64)
    assert stopped == set(ranked([float(n) for n in right])[keep:])


def test_few_samples_stop_nobody() -> None:
    assert behind([np.ones(15), np.zeros(15)], [Merit()] * 2, 1, 1000) == set()


def test_agreement_does_not_pass_for_certainty() -> None:
    """Two that agree on all samples so far, one with a lead by its merit: the rest may differ."""
    agree = np.array([1.0, 0.0] * 16)
    merits = [Merit(base=0.0), Merit(base=0.01)]
    assert behind([agree, agree], merits, 1, 10_000) == set()


def test_merits_decide() -> None:
    """Less is lost, but much less is saved: the loss per cost saved is what counts."""
    samples = [np.full(200, 0.90), np.full(200, 0.80)]
    merits = [Merit(base=1.0, rate=10.0), Merit(base=1.0, rate=1.0)]
    assert behind(samples, merits, 1, 10_000) == {0}


@pytest.mark.parametrize("gap", [0.0, 0.02, 0.1])
def test_the_risk_is_kept(gap: float) -> None:
    """Over a finite set of 2,000 samples, the best of five is stopped in at most 1% of races."""
    rng = np.random.default_rng(0)
    wrong, spent, races = 0, 0, 200
    for _ in range(races):
        difficulty = rng.random(2000)
        rates = [0.8, *(0.8 - gap for _ in range(4))]
        full = [(difficulty + 0.1 * rng.standard_normal(2000) < r).astype(float) for r in rates]
        best = ranked([float(x.mean()) for x in full])[0]
        alive = list(range(5))
        for end in (50, 100, 200, 400, 800, 1600, 2000):
            spent += len(alive) * (end - end // 2 if end != 50 else 50)
            lost = behind([full[i][:end] for i in alive], [Merit()] * len(alive), 1, 2000)
            alive = [i for k, i in enumerate(alive) if k not in lost]
        wrong += best not in alive
    assert wrong <= max(2, 0.01 * races)
    if gap == 0.1:
        assert spent < 0.5 * races * 5 * 2000, "racing must save"


@given(st.integers(1, 300))
def test_stages_cover_all_parts_once(parts: int) -> None:
    found = [part for stage in stages(parts) for part in stage]
    assert found == list(range(parts))
    assert len(stages(parts)) <= 2 + parts.bit_length()
