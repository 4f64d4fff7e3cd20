"""Counts as polynomials in the kept sizes of Dims: built once, evaluated exactly for many subnets.

A polynomial is a sum of monomials, a monomial a product of symbols. A symbol is a Dim, or a sum of
several (the kept size of a concatenation), which is worked out once however often it is a factor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import product

import numpy as np
import numpy.typing as npt

from nestify.dims import Const, Dim, Expr
from nestify.dims.fold import Fold

__all__ = ["Algebra", "Chunk", "Polynomial", "times", "total"]

Polynomial = dict[tuple[int, ...], int]
"""Symbols of each monomial, ascending, and its coefficient, which is never 0; ``()`` is 1."""

Ints = npt.NDArray[np.int64]


def total(terms: Iterable[Polynomial]) -> Polynomial:
    """The sum.

    >>> total([{(0,): 2, (): 1}, {(0,): -2}])
    {(): 1}
    """
    found: Polynomial = {}
    for term in terms:
        for monomial, share in term.items():
            found[monomial] = found.get(monomial, 0) + share
    return {monomial: share for monomial, share in found.items() if share}


def times(polynomial: Polynomial, factor: int) -> Polynomial:
    """The multiple by a number other than 0."""
    return {monomial: share * factor for monomial, share in polynomial.items()}


def _multiply(factors: Iterable[Polynomial]) -> Polynomial:
    found: Polynomial = {(): 1}
    for factor in factors:
        pairs = product(found.items(), factor.items())
        found = {tuple(sorted(a + b)): m * n for (a, m), (b, n) in pairs}
    return found


class Algebra:
    """Symbols by number, each a Dim or a sum of monomials in earlier symbols.

    >>> a, b, algebra = Dim(8), Dim(4), Algebra()
    >>> algebra.volume((a, Const(3), b)), algebra.symbols == [a, b]
    ({(0, 1): 3}, True)
    """

    def __init__(self) -> None:
        self.symbols: list[Dim | Polynomial] = []
        self._sums: dict[frozenset[tuple[tuple[int, ...], int]], int] = {}
        self.size = Fold(self._leaf, _multiply, self._sum)

    def volume(self, dims: Iterable[Expr]) -> Polynomial:
        """The product of the kept sizes of ``dims``, for one sample; a single monomial."""
        return _multiply(self.size(expr) for expr in dims)

    def _leaf(self, leaf: Dim | Const) -> Polynomial:
        if isinstance(leaf, Const) or leaf.batch:
            return {(): leaf.size if isinstance(leaf, Const) else 1}
        self.symbols.append(leaf)
        return {(len(self.symbols) - 1,): 1}

    def _sum(self, parts: list[Polynomial]) -> Polynomial:
        found = total(parts)
        if len(found) < 2:
            return found
        key = frozenset(found.items())
        if key not in self._sums:
            self._sums[key] = len(self.symbols)
            self.symbols.append(found)
        return {(self._sums[key],): 1}


class Chunk:
    """The values of an algebra's symbols for some subnets, and polynomials evaluated there."""

    def __init__(self, algebra: Algebra, sizes: Mapping[Dim, Ints], count: int) -> None:
        self.values: list[Ints | int] = []
        self._term = np.empty(count, dtype=np.int64)
        for symbol in algebra.symbols:
            if isinstance(symbol, Dim):
                self.values.append(sizes.get(symbol, symbol.size))
            elif any(isinstance(self.values[k], np.ndarray) for term in symbol for k in term):
                column = np.empty(count, dtype=np.int64)
                self.add(symbol, column, clear=True)
                self.values.append(column)
            else:
                self.values.append(sum(self._split(*term)[0] for term in symbol.items()))

    def _split(self, monomial: tuple[int, ...], share: int) -> tuple[int, list[Ints]]:
        """The factors that are one number for all subnets, multiplied, and the other factors."""
        columns: list[Ints] = []
        for symbol in monomial:
            value = self.values[symbol]
            if isinstance(value, int):
                share *= value
            else:
                columns.append(value)
        return share, columns

    def add(self, polynomial: Polynomial, to: Ints, *, clear: bool = False) -> None:
        """Add the values of ``polynomial`` to ``to``, after setting it to 0 where ``clear``."""
        constant = 0
        if clear:
            to.fill(0)
        for monomial, share in polynomial.items():
            share, columns = self._split(monomial, share)
            if not columns:
                constant += share
                continue
            term = columns[0]
            for factor in (*columns[1:], *([share] if abs(share) != 1 else [])):
                term = np.multiply(term, factor, out=self._term)
            (np.subtract if share == -1 else np.add)(to, term, out=to)
        if constant:
            np.add(to, constant, out=to)

    def peak(self, changes: Iterable[Polynomial], to: Ints) -> None:
        """Set ``to`` to the largest value of the running sum of ``changes``, at least 0."""
        live = np.zeros_like(to)
        to.fill(0)
        for change in changes:
            self.add(change, live)
            np.maximum(to, live, out=to)
