"""Cutting tensors, and writing what was cut back into its places."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nestify.dims import Const, Dim, Product, all_dims
from nestify.dims.selection import Grid, Keep, Plan, cut, put


@st.composite
def tensors_and_plans(draw: st.DrawFn) -> tuple[torch.Tensor, Plan]:
    """A tensor, perhaps with its dims turned, and what is kept of some of them."""
    shape = draw(st.lists(st.integers(1, 4), max_size=3))
    plan: Plan = []
    for position, size in enumerate(shape):
        kind = draw(st.sampled_from(["all", "first", "some", "grid"]))
        if kind == "first":
            plan.append((position, draw(st.integers(1, size))))
        elif kind == "some":
            kept = draw(st.sets(st.integers(0, size - 1), min_size=1))
            plan.append((position, torch.tensor(draw(st.permutations(sorted(kept))))))
        elif kind == "grid":
            sizes = draw(st.lists(st.integers(1, 3), min_size=2, max_size=3))
            grid = Grid(tuple(sizes), tuple(draw(st.integers(1, n)) for n in sizes))
            shape[position] = math.prod(sizes)
            plan.append((position, grid))
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
        kept = kept.indices() if isinstance(kept, Grid) else kept
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


@st.composite
def products(draw: st.DrawFn, depth: int = 2) -> Product:
    """A product of Dims, constants and products."""
    leaves = st.builds(Dim, st.integers(1, 4)) | st.builds(Const, st.integers(1, 3))
    factors = leaves if depth == 0 else leaves | products(depth - 1)
    return Product(tuple(draw(st.lists(factors, min_size=2, max_size=3))))


@given(products(), st.data())
def test_the_first_positions_of_factors_are_read_as_a_grid(
    expr: Product, data: st.DataObject
) -> None:
    dims = sorted(all_dims([expr]), key=lambda dim: dim.uid)  # a set has no order
    counts = {dim: data.draw(st.integers(1, dim.size)) for dim in dims}
    keep = Keep(counts)
    assert not isinstance(keep.kept(expr), torch.Tensor)
    x = torch.randn(2, expr.size, requires_grad=True)
    found, wanted = keep.slice(x, (Const(2), expr)), x.index_select(1, keep.indices(expr))
    assert torch.equal(found, wanted)
    weight = torch.randn_like(found)
    (grad,) = torch.autograd.grad(found, x, weight)
    assert torch.equal(grad, *torch.autograd.grad(wanted, x, weight))
