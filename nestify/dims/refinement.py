"""The three operations that give dims their meaning: unify, split and factor, all by refinement."""

from __future__ import annotations

from collections.abc import Iterator

from nestify.dims.expressions import (
    Concat,
    Const,
    Dim,
    Expr,
    Product,
    concat,
    dims_of,
    fix,
    new_dim,
    product,
    resolve,
    show,
)
from nestify.dims.reasons import Reason

__all__ = ["factor", "split", "unify"]


def _sizes(expr: Expr) -> str:
    return show(expr, names=False)


# --- unify ----------------------------------------------------------------------------------------


def unify(a: Expr, b: Expr, why: Reason) -> None:
    """Make ``a`` and ``b`` the same dim, refining both until they read alike.

    >>> x, y = Dim(8), Dim(8)
    >>> unify(x, y, Reason("add", "add", "residual sum"))
    >>> resolve(x) is resolve(y)
    True
    """
    work = [(a, b)]
    while work:
        left, right = (resolve(e) for e in work.pop())
        if left is right:
            continue
        if left.size != right.size:
            raise ValueError(f"{show(left)} and {show(right)} cannot be one dim ({why})")
        if isinstance(left, Dim):
            _bind(left, right, why)
        elif isinstance(right, Dim):
            _bind(right, left, why)
        elif isinstance(left, Const):
            fix(right, left.reason or why)
        elif isinstance(right, Const):
            fix(left, right.reason or why)
        elif isinstance(left, Product) and isinstance(right, Product):
            work.extend(_align_products(left, right, why))
        elif isinstance(left, Concat) and isinstance(right, Concat):
            work.extend(_align_concats(left, right, why))
        else:
            work.append(_align_mixed(left, right, why))


def _bind(dim: Dim, expr: Expr, why: Reason) -> None:
    if isinstance(expr, Dim):
        keep, gone = (dim, expr) if dim.uid < expr.uid else (expr, dim)
        keep.batch |= gone.batch
        keep.tags |= gone.tags
        gone.ref = keep
    elif isinstance(expr, Const):
        dim.ref = expr if expr.reason else Const(dim.size, why)
    elif dim.batch or any(leaf is dim for leaf in dims_of(expr)):
        # A dim is a part of itself only beside a batch dim of size 1.
        lost = why._replace(text="the batch dim meets a dim that has parts", kind="batch")
        fix(dim, lost)
        fix(expr, lost)
    else:
        for leaf in dims_of(expr):
            leaf.tags |= dim.tags
        dim.ref = expr


def _align_products(a: Product, b: Product, why: Reason) -> Iterator[tuple[Expr, Expr]]:
    """Pair factors from the left, factoring the larger of the two heads by the smaller."""
    left, right = list(reversed(a.factors)), list(reversed(b.factors))
    while left and right:
        x, y = left.pop(), right.pop()
        if x.size == y.size:
            yield x, y
        elif x.size % y.size and y.size % x.size:
            text = f"{_sizes(a)} and {_sizes(b)} have no common factors"
            lost = why._replace(text=text, kind="parts")
            for rest in (x, y, *left, *right):
                fix(rest, lost)
            return
        elif x.size > y.size:
            head, tail = factor(x, y.size, why)
            left.append(tail)
            yield head, y
        else:
            head, tail = factor(y, x.size, why)
            right.append(tail)
            yield x, head


def _align_concats(a: Concat, b: Concat, why: Reason) -> Iterator[tuple[Expr, Expr]]:
    """Pair parts from the left, splitting the longer of the two heads where the shorter ends."""
    left, right = list(reversed(a.parts)), list(reversed(b.parts))
    while left and right:
        x, y = left.pop(), right.pop()
        if x.size > y.size:
            x, tail = split(x, y.size, why)
            left.append(tail)
        elif y.size > x.size:
            y, tail = split(y, x.size, why)
            right.append(tail)
        yield x, y


def _align_mixed(a: Expr, b: Expr, why: Reason) -> tuple[Expr, Expr]:
    """Read the Concat of a Product-Concat pair as a product with the other's first factor."""
    prod, cat = (a, b) if isinstance(a, Product) else (b, a)
    assert isinstance(prod, Product)
    head = prod.factors[0]
    if head.size == 1:  # a batch dim of 1: as a constant it drops out of the product
        fix(head, why)
        return prod, cat
    return prod, product(factor(cat, head.size, why))


# --- split ----------------------------------------------------------------------------------------


def split(expr: Expr, k: int, why: Reason) -> tuple[Expr, Expr]:
    """Cut ``expr`` into its first ``k`` positions and the rest.

    >>> first, rest = split(Dim(10), 4, Reason("chunk", "chunk", ""))
    >>> first.size, rest.size
    (4, 6)
    """
    expr = resolve(expr)
    left: list[Expr] = []
    right: list[Expr] = []
    todo: list[tuple[Expr, int]] = [(expr, k)]
    while todo:
        item, at = todo.pop()
        if at <= 0 or at >= item.size:
            (right if at <= 0 else left).append(item)
        elif isinstance(item, Const):
            left.append(Const(at, item.reason))
            right.append(Const(item.size - at, item.reason))
        elif isinstance(item, Dim):
            first, rest = _split_dim(item, at, why)
            left.append(first)
            right.append(rest)
        elif isinstance(item, Concat):
            offset = 0
            steps: list[tuple[Expr, int]] = []
            for part in item.parts:
                steps.append((part, at - offset))
                offset += part.size
            todo.extend(reversed(steps))
        else:
            todo.extend(reversed(_split_product(item, at, why)))
    return concat(left), concat(right)


def _split_dim(dim: Dim, k: int, why: Reason) -> tuple[Expr, Expr]:
    if dim.batch:
        fix(dim, why._replace(text=f"cuts the batch dim at {k}", kind="batch"))
        return split(dim, k, why)
    first, rest = new_dim(k, dim.tags), new_dim(dim.size - k, dim.tags)
    dim.ref = concat((first, rest))
    return first, rest


def _split_product(item: Product, at: int, why: Reason) -> list[tuple[Expr, int]]:
    """Rewrite the cut of a product as cuts of its first factor and of one of its rows.

    A row that the cut divides stays: the parts on both sides must know how many rows they have.
    """
    head, *others = item.factors
    inner = product(others)
    rows, rest = divmod(at, inner.size)
    first, last = split(head, rows, why)
    middle: list[tuple[Expr, int]] = []
    if rest:
        one, last = split(last, 1, why)
        text = f"cuts {_sizes(item)} at {at}, inside this row"
        fix(one, why._replace(text=text, kind="parts"))
        inner = resolve(inner)  # where a dim is multiplied by itself, it was just split
        middle.append((inner, rest))
    before, after = product([first, inner]), product([last, inner])
    return [(before, before.size), *middle, (after, 0)]


# --- factor ---------------------------------------------------------------------------------------


def factor(expr: Expr, m: int, why: Reason) -> tuple[Expr, Expr]:
    """Read ``expr`` as ``left * right`` with ``left`` of size ``m``.

    >>> heads, head_dim = factor(Dim(192), 3, Reason("view", "view", ""))
    >>> heads.size, head_dim.size
    (3, 64)
    """
    expr = resolve(expr)
    if m == 1 or m == expr.size:
        return (Const(1), expr) if m == 1 else (expr, Const(1))
    if isinstance(expr, Const):
        return Const(m, expr.reason), Const(expr.size // m, expr.reason)
    if expr.size % m == 0:
        if isinstance(expr, Dim):
            return _factor_dim(expr, m, why)
        if isinstance(expr, Product):
            found = _factor_product(expr, m, why)
        else:
            found = _factor_concat(expr, m, why)
        if found:
            return found
    text = f"cannot read {_sizes(expr)} as {m} x {expr.size // m}"
    fix(expr, why._replace(text=text, kind="parts"))
    return factor(expr, m, why)


def _factor_dim(dim: Dim, m: int, why: Reason) -> tuple[Expr, Expr]:
    if dim.batch:
        text = f"reads the batch dim as {m} x {dim.size // m}"
        fix(dim, why._replace(text=text, kind="batch"))
        return factor(dim, m, why)
    left, right = new_dim(m, dim.tags), new_dim(dim.size // m, dim.tags)
    dim.ref = Product((left, right))
    return left, right


def _factor_product(expr: Product, m: int, why: Reason) -> tuple[Expr, Expr] | None:
    size, parts = 1, expr.factors
    for i, part in enumerate(parts):
        if size * part.size <= m:
            size *= part.size
            if size == m:
                return product(parts[: i + 1]), product(parts[i + 1 :])
            continue
        need = m // size
        if m % size or part.size % need:
            return None
        left, right = factor(part, need, why)
        return product([*parts[:i], left]), product([right, *parts[i + 1 :]])
    return None


def _factor_concat(expr: Concat, m: int, why: Reason) -> tuple[Expr, Expr]:
    """Share the inner factor where every part holds whole rows; else make the ``m`` rows equal."""
    inner = expr.size // m
    if all(part.size % inner == 0 for part in expr.parts):
        pairs = [factor(part, part.size // inner, why) for part in expr.parts]
        for _, right in pairs[1:]:
            unify(pairs[0][1], right, why)
        return concat(resolve(left) for left, _ in pairs), resolve(pairs[0][1])
    rest: Expr = expr
    rows: list[Expr] = []
    for _ in range(m - 1):
        row, rest = split(rest, inner, why)
        rows.append(row)
    for row in rows:
        unify(row, rest, why)
    return Const(m), resolve(rest)
