"""Evaluation: given what is kept of each Dim, the kept size and kept indices of any expression.

Slicing parameters, masks, costs and new shape literals are all this one evaluation. What is kept of
a Dim is a count (its first positions: ordered dropout) or a tensor of positions (importance
pruning).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch

from nestify.dims import Const, Dim, Expr, Product, resolve
from nestify.dims.fold import Fold
from nestify.errors import UsageError

__all__ = ["Grid", "Keep", "Kept", "Plan", "Strided", "cut", "put"]


_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class Grid(NamedTuple):
    """The positions of a product of which only first ones of each factor are kept.

    Of 3 parts with 4 heads of 8 channels, two heads of each: ``sizes`` (3, 32), ``kept`` (3, 16).
    A strided view reads them, where an index would be looked up for each.
    """

    sizes: tuple[int, ...]
    kept: tuple[int, ...]

    def then(self, size: int, kept: int) -> Grid:
        """With one factor more, the fastest; a whole one counts with that before it, and one behind
        a single position does.
        """
        if self.sizes and (size == kept or self.kept[-1] == 1):
            size, kept = self.sizes[-1] * size, self.kept[-1] * kept
            return Grid((*self.sizes[:-1], size), (*self.kept[:-1], kept))
        return Grid((*self.sizes, size), (*self.kept, kept))

    def steps(self) -> list[int]:
        """How many positions apart those of each factor are."""
        return [math.prod(self.sizes[i + 1 :]) for i in range(len(self.sizes))]

    def indices(self) -> torch.Tensor:
        """The kept positions, ascending."""
        return _rows([_Positions(n, torch.arange(k)) for n, k in zip(*self, strict=True)]).kept


Kept = int | Grid | torch.Tensor  # of a dim: its first positions, those of a grid, or these
Plan = list[tuple[int, Kept]]  # the position of a dim in a tensor, what is kept of it


class _Positions(NamedTuple):
    """Which of ``number`` positions are kept."""

    number: int
    kept: torch.Tensor


def _rows(factors: list[_Positions]) -> _Positions:
    number, kept = 1, torch.zeros(1, dtype=torch.int64)
    for factor in factors:
        kept = (kept[:, None] * factor.number + factor.kept).flatten()
        number *= factor.number
    return _Positions(number, kept)


def _side_by_side(parts: list[_Positions]) -> _Positions:
    ends = list(accumulate(part.number for part in parts))
    starts = (end - part.number for end, part in zip(ends, parts, strict=True))
    pieces = [part.kept + start for part, start in zip(parts, starts, strict=True)]
    return _Positions(ends[-1], torch.cat(pieces))


class Keep:
    """What a subnet keeps of every Dim, and what follows for expressions, literals and tensors.

    >>> a = Dim(4)
    >>> keep = Keep({a: 2})
    >>> keep.size(Product((a, Const(3)))), keep.indices(Product((a, Const(3)))).tolist()
    (6, [0, 1, 2, 3, 4, 5])
    """

    def __init__(
        self, counts: Mapping[Dim, int], picks: Mapping[Dim, torch.Tensor] | None = None
    ) -> None:
        self.picks = dict(picks or {})
        self.sizes: dict[Dim, int] = {**counts, **{d: len(p) for d, p in self.picks.items()}}
        self._held: set[Dim] = set()
        self._plans: dict[int, tuple[Sequence[Expr], Plan]] = {}
        self._size = Fold(self._kept, math.prod, sum)
        self._full = Fold(self._is_whole, all, all)
        self._positions = Fold(self._positions_of, _rows, _side_by_side)

    def size(self, expr: Expr) -> int:
        """Kept size of ``expr``."""
        if isinstance(expr, Const) or (isinstance(expr, Dim) and expr.ref is None):
            return self._kept(expr)  # most are, and a training step asks for each tensor
        return self._size(expr)

    def hold(self, dim: Dim, size: int) -> None:
        """Set the size of ``dim`` from now on, such as the batch size of one call: all of it is
        kept.
        """
        self.sizes[dim] = size
        self._held.add(dim)
        for fold in (self._size, self._full, self._positions):
            fold.forget()

    def _kept(self, leaf: Dim | Const) -> int:
        return self.sizes.get(leaf, leaf.size) if isinstance(leaf, Dim) else leaf.size

    def is_full(self, expr: Expr) -> bool:
        """Whether all of ``expr`` is kept, in its order."""
        expr = resolve(expr)
        return self._is_whole(expr) if isinstance(expr, Dim | Const) else self._full(expr)

    def _is_whole(self, leaf: Dim | Const) -> bool:
        if leaf in self._held:
            return True
        return leaf not in self.picks and self._kept(leaf) == leaf.size

    def _is_prefix(self, expr: Expr) -> bool:
        """Whether what is kept of ``expr`` are its first positions: of a product, whole rows."""
        expr = resolve(expr)
        while isinstance(expr, Product):
            first, *rest = expr.factors
            if not all(self.is_full(e) for e in rest):
                return False
            expr = resolve(first)
        return isinstance(expr, Dim) and expr not in self.picks

    def indices(self, expr: Expr) -> torch.Tensor:
        """Kept positions of ``expr``, ascending where the kept positions of its Dims are."""
        with torch.inference_mode(False):  # they are kept, and autograd may save them later
            return self._positions(expr).kept

    def _positions_of(self, leaf: Dim | Const) -> _Positions:
        pick = self.picks.get(leaf) if isinstance(leaf, Dim) else None
        size = self._kept(leaf) if leaf in self._held else leaf.size
        return _Positions(size, torch.arange(self._kept(leaf)) if pick is None else pick)

    def literal(self, value: Any, expr: Any) -> Any:
        """Respell an argument by the expressions that a rule gave for it (None: unchanged)."""
        if expr is None:
            return value
        if isinstance(expr, tuple):
            return [self.literal(v, e) for v, e in zip(value, expr, strict=True)]
        return expr if isinstance(expr, int) else self.size(expr)

    def kept(self, expr: Expr) -> Kept | None:
        """How many first positions of ``expr`` are kept, or which positions; None for all."""
        if self.is_full(expr):
            return None
        if self._is_prefix(expr):
            return self.size(expr)
        grid = self._grid(expr, Grid((), ()))
        if grid is None:
            return self.indices(expr)
        return grid if len(grid.kept) > 1 else self.size(expr)

    def _grid(self, expr: Expr, before: Grid) -> Grid | None:
        """``before`` with the factors of ``expr`` behind; None where one is no first positions."""
        expr = resolve(expr)
        if isinstance(expr, Product):
            found: Grid | None = before
            for factor in expr.factors:
                found = None if found is None else self._grid(factor, found)
            return found
        if not self.is_full(expr) and not self._is_prefix(expr):
            return None
        kept = self.size(expr)
        whole = kept if self.is_full(expr) else expr.size
        return before.then(whole, kept)

    def plan(self, dims: Sequence[Expr]) -> Plan:
        """How to cut a tensor with these dims: (dim, what is kept of it) per cut."""
        cached = self._plans.get(id(dims))
        if cached is not None:
            return cached[1]
        kept = ((position, self.kept(expr)) for position, expr in enumerate(dims))
        steps = [(position, some) for position, some in kept if some is not None]
        self._plans[id(dims)] = (dims, steps)
        return steps

    def slice(self, tensor: torch.Tensor, dims: Sequence[Expr]) -> torch.Tensor:
        """Cut ``tensor`` to what is kept: views for first positions, copies for others."""
        return cut(tensor, self.plan(dims))


class Strided(NamedTuple):
    """A view of the first positions and grids of a plan, which has a dim for each factor of a grid.

    ``sizes`` are those of the view, ``steps`` say of which dim of the tensor each stride is a
    multiple; no steps: of its own. ``shape`` is that of the result.
    """

    sizes: tuple[int, ...]
    steps: tuple[tuple[int, int], ...]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, full: Sequence[int], plan: Plan) -> Strided:
        """Of tensors of the shape ``full``; the index tensors of ``plan`` are left out."""
        by_dim = {position: kept for position, kept in plan if isinstance(kept, int | Grid)}
        kept = [by_dim.get(dim, size) for dim, size in enumerate(full)]
        shape = tuple(k if isinstance(k, int) else math.prod(k.kept) for k in kept)
        if not any(isinstance(k, Grid) for k in kept):
            return cls(shape, (), shape)
        grids = [k if isinstance(k, Grid) else Grid((k,), (k,)) for k in kept]
        steps = ((dim, step) for dim, grid in enumerate(grids) for step in grid.steps())
        return cls(tuple(n for grid in grids for n in grid.kept), tuple(steps), shape)

    def view(self, tensor: torch.Tensor) -> torch.Tensor:
        """One view for all dims: narrow would fill a tensor of the full size with zeros in backward
        for each dim, and in the wrong memory format.
        """
        strides = tensor.stride()
        if self.steps:
            strides = [strides[dim] * step for dim, step in self.steps]
        return tensor.as_strided(self.sizes, strides)

    def cut(self, tensor: torch.Tensor) -> torch.Tensor:
        """The view, or with a grid a copy."""
        view = self.view(tensor)
        if not self.steps:
            return view
        return view.clone(memory_format=torch.contiguous_format).view(self.shape)


def cut(tensor: torch.Tensor, plan: Plan) -> torch.Tensor:
    """Cut ``tensor`` as :meth:`Keep.plan` says.

    >>> cut(torch.arange(12), [(0, Grid((3, 4), (3, 2)))])
    tensor([0, 1, 4, 5, 8, 9])
    """
    strided = False
    for position, kept in plan:
        if isinstance(kept, torch.Tensor):
            tensor = tensor.index_select(position, kept.to(tensor.device))
        else:
            strided = True
    return Strided.of(tensor.shape, plan).cut(tensor) if strided else tensor


def put(tensor: torch.Tensor, plan: Plan, value: torch.Tensor) -> None:
    """Write ``value``, as large as what is kept, into its places in ``tensor``, as its dtype.

    >>> x = torch.zeros(4)
    >>> put(x, [(0, torch.tensor([1, 3]))], torch.tensor([5.0, 6.0]))
    >>> x
    tensor([0., 5., 0., 6.])
    """
    if not any(isinstance(kept, torch.Tensor) for _, kept in plan):
        view = Strided.of(tensor.shape, plan).view(tensor)
        view.copy_(value.reshape(view.shape))
        return
    view = cut(tensor, [(position, kept) for position, kept in plan if isinstance(kept, int)])
    places = [(at, _indices(kept)) for at, kept in plan if not isinstance(kept, int)]
    if len(places) == 1:
        position, kept = places[0]
        view.index_copy_(position, kept.to(tensor.device), value.to(tensor))
    else:
        grid = [torch.arange(size, device=tensor.device) for size in value.shape]
        for position, kept in places:
            grid[position] = kept.to(tensor.device)
        view[torch.meshgrid(*grid, indexing="ij")] = value.to(tensor)


def _indices(kept: Grid | torch.Tensor) -> torch.Tensor:
    return kept.indices() if isinstance(kept, Grid) else kept


def check_positions(name: str, size: int, positions: Any) -> torch.Tensor:
    """Validate a kept index set: distinct, in range, at least one."""
    try:
        given = torch.as_tensor(positions)
    except (TypeError, ValueError, RuntimeError):
        given = None
    if given is None or (given.numel() and given.dtype not in _WHOLE):
        raise UsageError(
            f"what is kept of group {name!r} must be a size or a list of positions, whole numbers; "
            f"got {positions!r} (of a mask, pass mask.nonzero().flatten())"
        )
    positions = given.to(torch.int64)
    if positions.ndim != 1 or not len(positions) or len(positions.unique()) != len(positions):
        raise UsageError(
            f"the kept set of group {name!r} must be a list of at least one distinct position"
        )
    low, high = int(positions.min()), int(positions.max())
    if low < 0 or high >= size:
        raise UsageError(
            f"position {low if low < 0 else high} of group {name!r} is out of range 0..{size - 1}"
        )
    return positions
