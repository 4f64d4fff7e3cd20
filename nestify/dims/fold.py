"""Evaluate a dim expression in any algebra: sizes, polynomials, positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from nestify.dims import Concat, Const, Dim, Expr, Product

__all__ = ["Fold"]


T = TypeVar("T")


class Fold(Generic[T]):
    """Values of expressions, from their leaves up; each expression is worked out once.

    >>> import math
    >>> a = Dim(8)
    >>> Fold(lambda leaf: leaf.size, math.prod, sum)(Product((Const(3), a)))
    24
    """

    def __init__(
        self,
        leaf: Callable[[Dim | Const], T],
        times: Callable[[list[T]], T],
        plus: Callable[[list[T]], T],
    ) -> None:
        self._leaf, self._times, self._plus = leaf, times, plus
        self._known: dict[Expr, T] = {}

    def forget(self) -> None:
        """Work everything out anew, as a leaf has another value."""
        self._known.clear()

    def __call__(self, expr: Expr) -> T:
        """The value of ``expr``."""
        known = self._known
        stack = [] if expr in known else [expr]
        while stack:
            top = stack[-1]
            parts = _written(top)
            pending = [part for part in parts if part not in known]
            if pending:
                stack.extend(pending)
                continue
            stack.pop()
            if isinstance(top, Product):
                known[top] = self._times([known[part] for part in parts])
            elif isinstance(top, Concat):
                known[top] = self._plus([known[part] for part in parts])
            else:
                known[top] = known[parts[0]] if parts else self._leaf(top)
        return known[expr]


def _written(expr: Expr) -> tuple[Expr, ...]:
    """What ``expr`` is made of as it stands: resolving it first would copy long concatenations."""
    if isinstance(expr, Dim):
        return () if expr.ref is None else (expr.ref,)
    if isinstance(expr, Product):
        return expr.factors
    return expr.parts if isinstance(expr, Concat) else ()
