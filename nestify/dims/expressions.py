"""Expressions over elastic dims: what they are made of, their canonical form, how they print."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count

from nestify.dims.reasons import Reason

__all__ = [
    "Concat",
    "Const",
    "Dim",
    "Expr",
    "Product",
    "all_dims",
    "concat",
    "dims_of",
    "fix",
    "leaves_of",
    "new_dim",
    "product",
    "resolve",
    "show",
    "tag",
]


class Dim:
    """One elastic dim of ``size`` positions, indivisible until a reason to refine it appears.

    ``ref`` is the expression that replaced it, ``batch`` marks the free batch dim (always kept
    whole, of any size at run time) and ``tags`` collects what rules know of its role (``"path"``,
    ``"head"``).
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
    """Build the canonical concatenation: flat, no empty parts, neighbouring constants merged."""
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


def _parts(expr: Expr) -> tuple[Expr, ...]:
    if isinstance(expr, Product):
        return expr.factors
    return expr.parts if isinstance(expr, Concat) else ()


def _root(expr: Expr) -> Expr:
    """Follow replaced Dims to what they stand for, and shorten the path behind."""
    top = expr
    while isinstance(top, Dim) and top.ref is not None:
        top = top.ref
    while isinstance(expr, Dim) and expr.ref is not None and expr.ref is not top:
        expr.ref, expr = top, expr.ref
    return top


def _inlined(expr: Expr) -> tuple[Expr, ...]:
    """Parts of a Product or Concat, with parts of the same kind opened, however deep they lie."""
    kind = type(expr)
    flat: list[Expr] = []
    stack = list(reversed(_parts(expr)))
    while stack:
        top = _root(stack.pop())
        if isinstance(top, kind):
            stack.extend(reversed(_parts(top)))
        else:
            flat.append(top)
    return tuple(flat)


def resolve(expr: Expr) -> Expr:
    """Return the canonical expression that ``expr`` stands for now.

    >>> a, b = Dim(6), Dim(6)
    >>> a.ref = b
    >>> resolve(a) is b
    True
    """
    top = _root(expr)
    if isinstance(top, Dim | Const):
        return top
    done: dict[int, Expr] = {}
    stack = [top]
    while stack:
        item = stack[-1]
        parts = _inlined(item)
        pending = [p for p in parts if not isinstance(p, Dim | Const) and id(p) not in done]
        if pending:
            stack.extend(pending)
            continue
        stack.pop()
        done[id(item)] = _rebuild(item, [done.get(id(part), part) for part in parts])
    return done[id(top)]


def _rebuild(expr: Expr, parts: list[Expr]) -> Expr:
    """Make the canonical form of ``expr``: in place if it keeps its kind, for all who share it."""
    made = product(parts) if isinstance(expr, Product) else concat(parts)
    if isinstance(expr, Product) and isinstance(made, Product):
        expr.factors = made.factors
        return expr
    if isinstance(expr, Concat) and isinstance(made, Concat):
        expr.parts = made.parts
        return expr
    return made


def leaves_of(expr: Expr) -> Iterator[Dim | Const]:
    """Yield the Dims and constants of ``expr`` from left to right."""
    stack = [resolve(expr)]
    while stack:
        top = stack.pop()
        if isinstance(top, Dim | Const):
            yield top
        else:
            stack.extend(reversed(_parts(top)))


def dims_of(expr: Expr) -> Iterator[Dim]:
    """Yield the elastic Dims of ``expr`` from left to right, once per occurrence."""
    return (leaf for leaf in leaves_of(expr) if isinstance(leaf, Dim))


def all_dims(
    exprs: Iterable[Expr], *, inside: bool = False, seen: dict[int, Expr] | None = None
) -> set[Dim]:
    """The elastic Dims of many expressions; parts that they share are visited once.

    With ``inside`` only Dims that are part of a larger expression; with ``seen`` none that an
    earlier call with it visited.

    >>> a, b = Dim(2), Dim(3)
    >>> all_dims([a, b]) == {a, b}, all_dims([a, Product((b, Const(2)))], inside=True) == {b}
    (True, True)
    """
    roots = [_root(expr) for expr in exprs]
    stack = [part for root in roots for part in _parts(root)] if inside else roots
    seen = {} if seen is None else seen
    found: set[Dim] = set()
    while stack:
        top = _root(stack.pop())
        if id(top) not in seen:
            seen[id(top)] = top
            stack.extend(_parts(top))
            if isinstance(top, Dim):
                found.add(top)
    return found


def fix(expr: Expr, why: Reason) -> None:
    """Make every Dim of ``expr`` a constant, for the reason given."""
    for dim in list(dims_of(expr)):
        if dim.ref is None:
            dim.ref = Const(dim.size, why)


def show(expr: Expr, *, names: bool = True) -> str:
    """Print an expression: ``(3*d12:64)``, ``[d4:16 | 8]``; a Dim is its number and size.

    Without ``names`` a Dim is its size, so that the text is the same in every run.
    """
    expr = resolve(expr)
    if isinstance(expr, Dim):
        return f"d{expr.uid}:{expr.size}" if names else str(expr.size)
    if isinstance(expr, Const):
        return str(expr.size)
    if isinstance(expr, Product):
        return "(" + "*".join(show(part, names=names) for part in expr.factors) + ")"
    return "[" + " | ".join(show(part, names=names) for part in expr.parts) + "]"
