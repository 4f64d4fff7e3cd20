"""The dim algebra against brute force: what was said of expressions holds for every kept set."""

from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nestify.dims import (
    Concat,
    Const,
    Dim,
    Expr,
    Product,
    Reason,
    concat,
    dims_of,
    factor,
    fix,
    leaves_of,
    new_dim,
    product,
    resolve,
    split,
    tag,
    unify,
)
from nestify.dims.selection import Keep

WHY = Reason("node", "op", "because")
Step = tuple[int, int, int, int]


class Model:
    """Expressions, and everything that was said of them, to be checked on masks of positions."""

    def __init__(self) -> None:
        self.pool: list[Expr] = []
        self.equal: list[tuple[Expr, Expr]] = []
        self.cuts: list[tuple[Expr, Expr, Expr]] = []
        self.grids: list[tuple[Expr, Expr, Expr]] = []
        self.sizes: list[tuple[Expr, int]] = []

    def add(self, *exprs: Expr) -> None:
        self.pool.extend(exprs)
        self.sizes.extend((expr, expr.size) for expr in exprs)

    def step(self, step: Step) -> None:
        """One random act: make, split, factor, join, multiply, unify or (seldom) fix."""
        kind, i, j, k = step
        if kind == 0 or not self.pool:
            self.add(new_dim((2, 3, 4, 6, 8, 12, 24, 5)[i % 8]))
            return
        a, b = self.pool[i % len(self.pool)], self.pool[j % len(self.pool)]
        if kind == 1:
            self.cut(a, k % (a.size + 1))
        elif kind == 2:
            self.grid(a, k)
        elif kind == 3 and a.size + b.size <= 48:
            self.join(a, b)
        elif kind == 4 and a.size * b.size <= 48:
            whole = product([resolve(a), resolve(b)])
            self.grids.append((whole, a, b))
            self.add(whole)
        elif kind >= 5:
            self.same(a, j)
        if kind == 9 and k == 0:
            fix(a, WHY)

    def cut(self, a: Expr, k: int) -> None:
        first, rest = split(a, k, WHY)
        self.cuts.append((a, first, rest))
        self.add(first, rest)

    def grid(self, a: Expr, k: int) -> None:
        divisors = [d for d in range(1, a.size + 1) if a.size % d == 0] or [1]
        left, right = factor(a, divisors[k % len(divisors)], WHY)
        self.grids.append((a, left, right))
        self.add(left, right)

    def join(self, a: Expr, b: Expr) -> None:
        whole = concat([resolve(a), resolve(b)])
        self.cuts.append((whole, a, b))
        self.add(whole)

    def same(self, a: Expr, j: int) -> None:
        others = [b for b in self.pool if b.size == a.size]
        b = others[j % len(others)]
        unify(a, b, WHY)
        self.equal.append((a, b))

    def check(self, keep: Keep) -> None:
        """All that was said, on masks: every position is kept or not, whichever way it is named."""
        for expr, size in self.sizes:
            assert resolve(expr).size == size == expr.size == sum(e.size for e in _parts(expr))
            assert keep.size(expr) == len(keep.indices(expr)) == sum(_mask(keep, expr))
        for a, b in self.equal:
            assert keep.indices(a).tolist() == keep.indices(b).tolist()
        for whole, first, rest in self.cuts:
            assert _mask(keep, whole) == _mask(keep, first) + _mask(keep, rest)
        for whole, left, right in self.grids:
            rows, columns = _mask(keep, left), _mask(keep, right)
            assert _mask(keep, whole) == [row and column for row in rows for column in columns]


def _parts(expr: Expr) -> Iterable[Expr]:
    expr = resolve(expr)
    return expr.parts if isinstance(expr, Concat) else [expr]


def _mask(keep: Keep, expr: Expr) -> list[bool]:
    mask = torch.zeros(expr.size, dtype=torch.bool)
    mask[keep.indices(expr)] = True
    return mask.tolist()


def keep_some(exprs: Iterable[Expr], seed: int) -> Keep:
    rng = random.Random(seed)
    dims = {dim: None for expr in exprs for dim in dims_of(expr)}
    picks = {d: sorted(rng.sample(range(d.size), rng.randint(1, d.size))) for d in dims}
    return Keep({}, {dim: torch.tensor(pick) for dim, pick in picks.items()})


def steps(low: int, high: int) -> st.SearchStrategy[list[Step]]:
    number = st.integers(0, 60)
    return st.lists(
        st.tuples(st.integers(0, 9), number, number, number), min_size=low, max_size=high
    )


@settings(max_examples=1500, deadline=None)
@given(steps(1, 25), st.integers(0, 2**16))
def test_what_was_said_of_dims_holds(script: list[Step], seed: int) -> None:
    model = Model()
    for step in script:
        model.step(step)
    for draw in range(3):
        model.check(keep_some(model.pool, seed + draw))


@settings(max_examples=300, deadline=None)
@given(steps(1, 25), st.integers(0, 60))
def test_fixing_reaches_all_that_shares_the_dim(script: list[Step], which: int) -> None:
    model = Model()
    for step in script:
        model.step(step)
    chosen = model.pool[which % len(model.pool)]
    gone = set(dims_of(chosen))
    fix(chosen, WHY)
    assert not list(dims_of(chosen))
    assert not any(gone & set(dims_of(expr)) for expr in model.pool)
    for a, b in model.equal:
        assert bool(list(dims_of(a))) == bool(list(dims_of(b)))
    model.check(keep_some(model.pool, which))


def test_random_scripts_leave_dims_elastic() -> None:
    """The property above is not kept by fixing everything."""
    elastic = 0
    for seed in range(50):
        rng = random.Random(seed)
        model = Model()
        for _ in range(20):
            model.step(
                (rng.randint(0, 8), rng.randint(0, 60), rng.randint(0, 60), rng.randint(0, 60))
            )
        elastic += any(True for expr in model.pool for _ in dims_of(expr))
    assert elastic >= 25


# --- single cases ---------------------------------------------------------------------------------


def test_a_rotation_makes_its_parts_powers_of_one_word() -> None:
    a, b = Dim(4), Dim(6)
    unify(concat([a, b]), concat([b, a]), WHY)
    (unit,) = set(dims_of(a))
    assert unit.size == 2
    assert [leaf is unit for leaf in leaves_of(concat([a, b]))] == [True] * 5


def test_a_rotation_of_coprime_parts_ends_and_fixes_them() -> None:
    a, b = Dim(2), Dim(3)
    unify(concat([a, b]), concat([b, a]), WHY)
    assert not list(dims_of(concat([a, b])))


def test_rotated_halves_are_one_dim() -> None:
    x = Dim(8)
    left, right = split(x, 4, WHY)
    unify(x, concat([right, left]), WHY)
    assert resolve(left) is resolve(right)


def test_the_same_dim_twice_split_unevenly() -> None:
    a = Dim(6)
    whole = concat([a, a])
    first, rest = split(whole, 2, WHY)
    keep = keep_some([whole], 1)
    assert _mask(keep, first) + _mask(keep, rest) == _mask(keep, a) * 2


def test_equal_parts_are_rows_of_a_product() -> None:
    a, b = Dim(6), Dim(6)
    left, right = factor(concat([a, b]), 2, WHY)
    assert isinstance(left, Const)
    assert resolve(right) is resolve(a) is resolve(b)


def test_parts_of_whole_rows_share_the_inner_factor() -> None:
    a, b = Dim(4), Dim(8)
    left, right = factor(concat([a, b]), 6, WHY)
    assert len(list(dims_of(left))) == 2
    assert isinstance(resolve(a), Product)
    assert isinstance(resolve(b), Product)
    assert resolve(a).factors[1] is resolve(b).factors[1] is resolve(right)


def test_a_concat_meets_a_product() -> None:
    a, b, rows, inner = Dim(4), Dim(8), Dim(3), Dim(4)
    grid = product([rows, inner])
    unify(concat([a, b]), grid, WHY)
    assert resolve(a) is resolve(inner)
    assert [part.size for part in _parts(rows)] == [1, 2]


def test_products_without_common_factors_are_fixed_with_both_named() -> None:
    a, b = product([Dim(6), Dim(2)]), product([Dim(4), Dim(3)])
    unify(a, b, WHY)
    (only,) = leaves_of(a)
    assert isinstance(only, Const)
    assert only.reason is not None
    assert "no common factors" in only.reason.text


def test_sizes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be one dim"):
        unify(Dim(3), Dim(4), WHY)


def test_a_constant_hands_on_its_own_reason() -> None:
    first = Reason("input", "input", "is a dim of the model's input")
    x, y = Dim(4), Dim(4)
    unify(x, Const(4, first), WHY)
    unify(x, y, WHY)
    assert resolve(y) == resolve(x)
    assert resolve(y).reason == first


def test_roles_reach_the_parts() -> None:
    heads, a, b = Dim(6), Dim(2), Dim(4)
    tag(heads, "head")
    unify(heads, concat([a, b]), WHY)
    assert all("head" in dim.tags for dim in dims_of(heads))
    first, _ = split(b, 1, WHY)
    assert isinstance(first, Const)
    assert all("head" in dim.tags for dim in dims_of(b))


# --- the batch dim --------------------------------------------------------------------------------


def test_the_batch_dim_stays_whole_or_goes() -> None:
    for act in (
        lambda dim: split(dim, 2, WHY),
        lambda dim: factor(dim, 2, WHY),
        lambda dim: unify(dim, product([Dim(2), Dim(3)]), WHY),
        lambda dim: unify(concat([Dim(2), Dim(4)]), dim, WHY),
        lambda dim: unify(dim, Const(6), WHY),
    ):
        batch = Dim(6, batch=True)
        act(batch)
        assert isinstance(resolve(batch), Const)


def test_what_meets_the_batch_dim_is_the_batch_dim() -> None:
    batch, x = Dim(6, batch=True), Dim(6)
    unify(x, batch, WHY)
    assert [dim.batch for dim in dims_of(x)] == [True]


def test_the_batch_dim_is_joined_and_taken_apart_again() -> None:
    batch, x = Dim(6, batch=True), Dim(4)
    left, right = factor(product([batch, x]), 6, WHY)
    assert (resolve(left), resolve(right)) == (batch, x)
    first, rest = split(concat([batch, batch]), 6, WHY)
    assert first is rest is batch


def test_a_batch_dim_of_one_never_is_a_part_of_itself() -> None:
    batch, x = Dim(1, batch=True), Dim(8)
    unify(x, product([batch, x]), WHY)
    assert isinstance(resolve(x), Const)
    batch, a, b = Dim(1, batch=True), Dim(2), Dim(6)
    unify(product([batch, Dim(2), Dim(4)]), concat([a, b]), WHY)
    assert isinstance(resolve(batch), Const)


# --- long chains ----------------------------------------------------------------------------------

LONG = 10_000


def test_a_long_chain_of_cuts() -> None:
    whole = Dim(2 * LONG)
    rest: Expr = whole
    for _ in range(LONG - 1):
        _, rest = split(rest, 2, WHY)
    keep = keep_some([whole], 0)
    assert len(list(dims_of(whole))) == LONG
    assert len(keep.indices(whole)) == keep.size(whole)


@pytest.mark.parametrize("forward", [True, False])
def test_a_long_chain_of_equal_dims(forward: bool) -> None:
    chain = [Dim(4) for _ in range(LONG)]
    order = list(pairwise(chain))
    for a, b in order if forward else reversed(order):
        unify(a, b, WHY)
    assert len({id(resolve(dim)) for dim in chain}) == 1


def test_a_long_chain_of_factors() -> None:
    whole = Dim(2**LONG)
    rest: Expr = whole
    for _ in range(LONG - 2):
        _, rest = factor(rest, 2, WHY)
    assert len(list(dims_of(whole))) == LONG - 1


def test_a_long_chain_of_views_and_sums() -> None:
    """Flattened, cut, joined and added, again and again: what a deep net does to one stream."""
    stream: Expr = product([Dim(4), Dim(6)])
    for _ in range(LONG):
        left, right = split(stream, 12, WHY)
        heads, inner = factor(concat([left, right]), 4, WHY)
        joined = product([resolve(heads), resolve(inner)])
        unify(joined, stream, WHY)
        stream = joined
    assert sorted(dim.size for dim in set(dims_of(stream))) == [2, 2, 6]


def test_a_long_join_is_cut_in_pieces() -> None:
    parts = [Dim(3) for _ in range(1000)]
    rest: Expr = concat(parts)
    for part in parts[:-1]:
        piece, rest = split(rest, 3, WHY)
        assert piece is part
    assert rest is parts[-1]


def test_a_cut_inside_a_row_leaves_the_other_rows_elastic() -> None:
    rows, width = Dim(5), Dim(4)
    first, rest = split(product([rows, width]), 10, WHY)
    assert [leaf.size for leaf in leaves_of(rows)] == [2, 1, 2]
    assert [leaf.size for leaf in leaves_of(width)] == [2, 2]
    assert [dim.size for dim in dims_of(first)] == [2, 2, 2, 2]
    assert (first.size, rest.size) == (10, 10)
