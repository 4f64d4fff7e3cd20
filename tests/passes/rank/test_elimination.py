"""Elimination: the position that costs least leaves next, from all rows or from fewer."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from nestify.passes.ranking.removal_order import Rows, eliminate


@given(st.integers(1, 9), st.integers(1, 12), st.integers(0, 10**6))
def test_elimination_takes_the_cheapest_next_every_time(samples: int, size: int, seed: int) -> None:
    rows = torch.randn(samples, size, generator=torch.Generator().manual_seed(seed)).double()
    costs, order = eliminate(rows)
    gone: list[int] = []
    highest = 0.0

    def energy(positions: list[int]) -> float:
        return float(rows[:, positions].sum(1).square().sum())

    for position in reversed(order.tolist()):
        there = [p for p in range(size) if p not in gone]
        steps = {p: energy([*gone, p]) - energy(gone) for p in there}
        assert steps[position] <= min(steps.values()) + 1e-9
        highest = max(highest, steps[position] / 2)
        assert math.isclose(float(costs[position]), highest, abs_tol=1e-9)
        gone.append(position)


def test_many_positions_leave_in_rounds_and_none_twice() -> None:
    rows = torch.randn(4, 3000, generator=torch.Generator().manual_seed(0)).double()
    costs, order = eliminate(rows)
    assert sorted(order.tolist()) == list(range(3000))
    assert bool((costs[order].diff() <= 0).all())


def test_rows_beyond_the_limit_are_kept_on_average() -> None:
    draw = torch.Generator().manual_seed(0)
    data = (
        torch.randn(4000, 5, generator=draw).double() @ torch.randn(5, 5, generator=draw).double()
    )
    few, all_of_them = Rows(limit=500), Rows(limit=4000)
    for chunk in data.split(170):
        few.add(chunk)
        all_of_them.add(chunk)
    exact = data.T @ data / 4000
    torch.testing.assert_close(all_of_them.rows.T @ all_of_them.rows, exact)
    error = (few.rows.T @ few.rows - exact).norm() / exact.norm()
    assert few.rows.shape == (500, 5)
    assert error < 0.15
