"""The dim algebra: what every dim of every tensor means, as an expression over elastic dims.

An expression is a :class:`Dim` (one elastic dim), a :class:`Const` (never changes), a :class:`Product`
(row-major flattening, ``heads * head_dim``) or a :class:`Concat` (side by side, the channels of a
``torch.cat``). Three operations work by refinement: a Dim may be replaced, everywhere at once, by an
expression over smaller Dims. Replacement is union-find with path compression, so a whole graph costs
near-linear time, and no operation recurses into Python's stack or lists indices.

* :func:`unify` makes two expressions the same dim,
* :func:`split` cuts one into its first ``k`` positions and the rest,
* :func:`factor` reads one as ``left * right``.

Where an operation has no solution the Dims involved become constants that carry a :class:`Reason`. That
is the safety property: a dim is elastic only if its meaning was understood at every op it reaches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

__all__ = [
    "Concat",
    "Const",
    "Dim",
    "Expr",
    "Product",
    "Reason",
    "concat",
    "dims_of",
    "factor",
    "fix",
    "leaves_of",
    "new_dim",
    "product",
    "resolve",
    "show",
    "split",
    "tag",
    "unify",
]


class Reason(NamedTuple):
    """Why a dim is fixed: the node and op that fixed it, and a clause that says how."""

    node: str
    op: str
    text: str


class Dim:
    """One elastic dim of ``size`` positions, indivisible until a reason to refine it appears.

    ``ref`` is the expression that replaced it, ``batch`` marks the free batch dim (always kept whole, of
    any size at run time) and ``tags`` collects what rules know of its role (``"path"``, ``"head"``).
    """

    __slots__ = ("batch", "ref", "size", "tags", "uid")

    _uids: Iterator[int] = count()

    def __init__(self, size: int, *, batch: bool = False) -> None:
        self.size = size
        self.ref: Expr | None = None
        self.batch = batch
        self.tags: frozenset[str] = frozenset()
        self.uid = next(Dim._uids)

    def __repr__(self) -> str:
        return show(self)


@dataclass(slots=True, eq=False)
class Const:
    """``size`` positions that never change; ``reason`` is set where a Dim was fixed."""

    size: int
    reason: Reason | None = None

    def __repr__(self) -> str:
        return show(self)


class Product:
    """Row-major flattening of two or more factors: the first factor varies slowest."""

    __slots__ = ("factors", "size")

    def __init__(self, factors: tuple[Expr, ...]) -> None:
        self.factors = factors
        size = 1
        for part in factors:
            size *= part.size
        self.size = size

    def __repr__(self) -> str:
        return show(self)


class Concat:
    """Two or more expressions side by side."""

    __slots__ = ("parts", "size")

    def __init__(self, parts: tuple[Expr, ...]) -> None:
        self.parts = parts
        self.size = sum(part.size for part in parts)

    def __repr__(self) -> str:
        return show(self)


Expr = Dim | Const | Product | Concat


def new_dim(size: int, tags: frozenset[str] = frozenset()) -> Dim | Const:
    """Make a Dim, or a constant where a single position leaves nothing to choose."""
    if size <= 1:
        return Const(size)
    dim = Dim(size)
    dim.tags = tags
    return dim


def tag(expr: Expr, role: str) -> None:
    """Note a role (``"path"``, ``"head"``) on every Dim of ``expr``."""
    for dim in dims_of(expr):
        dim.tags |= {role}


def product(factors: Iterable[Expr]) -> Expr:
    """Build the canonical product: flat, without ones, neighbouring constants merged."""
    flat: list[Expr] = []
    for item in factors:
        for part in item.factors if isinstance(item, Product) else (item,):
            if part.size == 1 and isinstance(part, Const):
                continue
            if flat and isinstance(part, Const) and isinstance(last := flat[-1], Const):
                flat[-1] = Const(last.size * part.size, last.reason or part.reason)
            else:
                flat.append(part)
    if not flat:
        return Const(1)
    return flat[0] if len(flat) == 1 else Product(tuple(flat))


def concat(parts: Iterable[Expr]) -> Expr:
    """Build the canonical concatenation: flat, without empty parts, neighbouring constants merged."""
    flat: list[Expr] = []
    for item in parts:
        for part in item.parts if isinstance(item, Concat) else (item,):
            if part.size == 0:
                continue
            if flat and isinstance(part, Const) and isinstance(last := flat[-1], Const):
                flat[-1] = Const(last.size + part.size, last.reason or part.reason)
            else:
                flat.append(part)
    if not flat:
        return Const(0)
    return flat[0] if len(flat) == 1 else Concat(tuple(flat))


def _children(expr: Expr) -> tuple[Expr, ...]:
    if isinstance(expr, Dim):
        return () if expr.ref is None else (expr.ref,)
    if isinstance(expr, Product):
        return expr.factors
    return expr.parts if isinstance(expr, Concat) else ()


def _is_final(expr: Expr) -> bool:
    return isinstance(expr, Const) or (isinstance(expr, Dim) and expr.ref is None)


def resolve(expr: Expr) -> Expr:
    """Return the canonical expression that ``expr`` stands for now.

    >>> a = Dim(6); left, right = factor(a, 2, Reason("view", "view", ""))
    >>> resolve(a).size, left.size, right.size
    (6, 2, 3)
    """
    if _is_final(expr) or (
        isinstance(expr, Product | Concat) and all(_is_final(part) for part in _children(expr))
    ):
        return expr
    done: dict[int, Expr] = {}
    stack = [expr]
    while stack:
        top = stack[-1]
        children = _children(top)
        pending = [c for c in children if id(c) not in done and not _is_final(c)]
        if pending:
            stack.extend(pending)
            continue
        stack.pop()
        done[id(top)] = _rebuild(top, [done.get(id(child), child) for child in children])
    return done[id(expr)]


def _rebuild(expr: Expr, children: list[Expr]) -> Expr:
    if isinstance(expr, Dim):
        expr.ref = children[0]  # path compression
        return children[0]
    return product(children) if isinstance(expr, Product) else concat(children)


def leaves_of(expr: Expr) -> Iterator[Dim | Const]:
    """Yield the Dims and constants of ``expr`` from left to right."""
    stack = [resolve(expr)]
    while stack:
        top = stack.pop()
        if isinstance(top, Dim | Const):
            yield top
        else:
            stack.extend(reversed(_children(top)))


def dims_of(expr: Expr) -> Iterator[Dim]:
    """Yield the elastic Dims of ``expr`` from left to right, once per occurrence."""
    return (leaf for leaf in leaves_of(expr) if isinstance(leaf, Dim))


def fix(expr: Expr, why: Reason) -> None:
    """Make every Dim of ``expr`` a constant, for the reason given."""
    for dim in list(dims_of(expr)):
        if dim.ref is None:
            dim.ref = Const(dim.size, why)


# --- unify ------------------------------------------------------------------------------------------------


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
    else:
        if dim.batch:
            fix(expr, why._replace(text="the batch dim meets a dim that has parts"))
        dim.ref = expr


def _align_products(a: Product, b: Product, why: Reason) -> Iterator[tuple[Expr, Expr]]:
    """Pair factors from the left, factoring the larger of the two heads by the smaller."""
    left, right = list(reversed(a.factors)), list(reversed(b.factors))
    while left and right:
        x, y = left.pop(), right.pop()
        if x.size == y.size:
            yield x, y
        elif x.size % y.size and y.size % x.size:
            lost = why._replace(text=f"{show(a)} and {show(b)} have no common factors")
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
    """Pair parts from the left, splitting the longer of the two heads where the shorter one ends."""
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
    return prod, product(factor(cat, prod.factors[0].size, why))


# --- split ------------------------------------------------------------------------------------------------


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
        fix(dim, why._replace(text=f"cuts the batch dim at {k}"))
        return split(dim, k, why)
    first, rest = new_dim(k, dim.tags), new_dim(dim.size - k, dim.tags)
    dim.ref = concat((first, rest))
    return first, rest


def _split_product(item: Product, at: int, why: Reason) -> list[tuple[Expr, int]]:
    """Rewrite the cut of a product as cuts of its first factor or of one of its copies."""
    head = item.factors[0]
    inner = product(item.factors[1:])
    rows, rest = divmod(at, inner.size)
    if not rest and not isinstance(head, Const):
        first, last = split(head, rows, why)
        return [(product([first, inner]), at), (product([last, inner]), 0)]
    if not isinstance(head, Const):
        # The cut falls inside one row of an elastic factor: rows must stay countable, so they are fixed.
        fix(head, why._replace(text=f"cuts {show(item)} at {at}, inside one part of {inner.size}"))
        return [(resolve(item), at)]
    before = product([Const(rows, head.reason), inner]) if rows else Const(0)
    after = head.size - rows - bool(rest)
    middle = [(inner, rest)] if rest else []
    tail = product([Const(after, head.reason), inner]) if after else Const(0)
    return [(before, before.size), *middle, (tail, 0)]


# --- factor -----------------------------------------------------------------------------------------------


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
    fix(expr, why._replace(text=f"cannot read {show(expr)} as {m} x {expr.size // m}"))
    return factor(expr, m, why)


def _factor_dim(dim: Dim, m: int, why: Reason) -> tuple[Expr, Expr]:
    if dim.batch:
        fix(dim, why._replace(text=f"reads the batch dim as {m} x {dim.size // m}"))
        return factor(dim, m, why)
    left, right = new_dim(m, dim.tags), new_dim(dim.size // m, dim.tags)
    dim.ref = Product((left, right))
    return left, right


def _factor_product(expr: Product, m: int, why: Reason) -> tuple[Expr, Expr] | None:
    size = 1
    for i, part in enumerate(expr.factors):
        if size * part.size <= m:
            size *= part.size
            if size == m:
                return product(expr.factors[: i + 1]), product(expr.factors[i + 1 :])
            continue
        need = m // size
        if m % size or part.size % need:
            return None
        left, right = factor(part, need, why)
        return product([*expr.factors[:i], left]), product([right, *expr.factors[i + 1 :]])
    return None


def _factor_concat(expr: Concat, m: int, why: Reason) -> tuple[Expr, Expr]:
    """Share the inner factor where every part holds whole rows; else equal the ``m`` rows themselves."""
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


def show(expr: Expr) -> str:
    """Print an expression: ``(3*d12:64)``, ``[d4:16 | 8]``; a Dim is its number and size."""
    expr = resolve(expr)
    if isinstance(expr, Dim):
        return f"d{expr.uid}:{expr.size}"
    if isinstance(expr, Const):
        return str(expr.size)
    if isinstance(expr, Product):
        return "(" + "*".join(show(part) for part in expr.factors) + ")"
    return "[" + " | ".join(show(part) for part in expr.parts) + "]"
