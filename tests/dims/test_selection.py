"""Cutting tensors, and writing what was cut back into its places."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nestify.dims import Const, Dim, Product
from nestify.dims.selection import Keep, Plan, cut, put


@st.composite
def tensors_and_plans(draw: st.DrawFn) -> tuple[torch.Tensor, Plan]:
    """A tensor, perhaps with its dims turned, and what is kept of some of them."""
    shape = draw(st.lists(st.integers(1, 4), max_size=3))
    plan: list[tuple[int, int | torch.Tensor]] = []
    for position, size in enumerate(shape):
        kind = draw(st.sampled_from(["all", "first", "some"]))
        if kind == "first":
            plan.append((position, draw(st.integers(1, size))))
        elif kind == "some":
            kept = draw(st.sets(st.integers(0, size - 1), min_size=1))
            plan.append((position, torch.tensor(draw(st.permutations(sorted(kept))))))
    turned = draw(st.permutations(range(len(shape))))
    base = torch.zeros([shape[i] for i in turned], dtype=torch.float64)
    return base.permute([list(turned).index(i) for i in range(len(shape))]), plan


@given(tensors_and_plans())
def test_put_writes_what_is_cut_and_nothing_else(case: tuple[torch.Tensor, Plan]) -> None:
    tensor, plan = case
    value = torch.randn(cut(tensor, plan).shape)  # of another precision
    put(tensor, plan, value)
    assert torch.equal(cut(tensor, plan), value.double())
    places: list[Iterable[Any]] = [range(n) for n in tensor.shape]
    for position, kept in plan:
        places[position] = range(kept) if isinstance(kept, int) else kept
    written = {tuple(int(i) for i in place) for place in itertools.product(*places)}
    for place in itertools.product(*map(range, tensor.shape)):
        assert place in written or tensor[place] == 0


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_dim_that_is_held_is_kept_whole_however_large_it_is(size: int) -> None:
    batch, channels = Dim(2, batch=True), Dim(3)
    keep = Keep({channels: 2})
    dims = (Product((Const(4), batch)), Product((batch, channels)))
    keep.hold(batch, size)
    x = torch.arange(4 * size * size * 3).reshape(4 * size, size * 3)
    cut = keep.slice(x, dims)
    assert torch.equal(cut, x.reshape(4 * size, size, 3)[..., :2].reshape(4 * size, size * 2))
