"""Least squares for one layer, and for several of one size side by side."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nestify.support.least_squares import Fit


@settings(max_examples=25)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.booleans(), st.integers(0, 999))
def test_groups_are_fitted_side_by_side(
    groups: int, inputs: int, outputs: int, bias: bool, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)

    def values(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    weight, shift = values(groups, outputs, inputs), values(groups, outputs) if bias else None
    chunks = [(values(groups, n, inputs), values(groups, n, outputs)) for n in (5, 1, 7)]
    both, first, second = (Fit(weight, shift) for _ in range(3))
    for i, chunk in enumerate(chunks):
        both.add(*chunk)
        (first if i < 2 else second).add(*chunk)
    first.merge(second)
    found, moved = both.solve(0.1)
    merged, _ = first.solve(0.1)
    torch.testing.assert_close(found, merged)
    assert first.count == both.count == 13
    total = 0.0
    for g in range(groups):
        one = Fit(weight[g], None if shift is None else shift[g])
        for rows, target in chunks:
            one.add(rows[g], target[g])
        alone, there = one.solve(0.1)
        torch.testing.assert_close(found[g], alone)
        if moved is not None and there is not None:
            torch.testing.assert_close(moved[g], there)
        total += one.error(alone, there)
    assert both.error(found, moved) == pytest.approx(total)


@settings(max_examples=25)
@given(st.booleans(), st.integers(0, 999))
def test_the_error_is_that_of_the_outputs(bias: bool, seed: int) -> None:
    torch.manual_seed(seed)
    weight, shift = torch.randn(3, 4).double(), torch.randn(3).double() if bias else None
    rows, target = torch.randn(4000, 4).double() + 1, torch.randn(4000, 3).double()
    fit = Fit(weight, shift)
    fit.add(rows, target)
    for new, moved in ((weight, shift), fit.solve(), fit.solve(10.0)):
        outputs = F.linear(rows, new, moved)
        expected = float((outputs - target).square().sum(1).mean())
        assert fit.error(new, moved) == pytest.approx(expected)
