"""Evaluation: given what is kept of each Dim, the kept size and kept indices of any expression.

Slicing parameters, masks, costs and new shape literals are all this one evaluation. What is kept of a Dim
is a count (its first positions: ordered dropout) or a tensor of positions (importance pruning).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from nestify.dims import Const, Dim, Expr, Product, dims_of, resolve
from nestify.errors import UsageError

__all__ = ["Keep", "kept_size"]


def kept_size(expr: Expr, sizes: Mapping[Dim, Any]) -> Any:
    """Size of ``expr`` when each Dim keeps ``sizes[dim]`` positions (all of them where it is not listed).

    Sizes may be ints, NumPy arrays (one entry a subnet) or fx nodes' symbolic values: only ``+`` and ``*``
    are used.

    >>> a = Dim(8)
    >>> kept_size(Product((Const(3), a)), {a: 5})
    15
    """
    expr = resolve(expr)
    if isinstance(expr, Dim):
        return sizes.get(expr, expr.size)
    if isinstance(expr, Const):
        return expr.size
    if isinstance(expr, Product):
        total: Any = 1
        for part in expr.factors:
            total = total * kept_size(part, sizes)
        return total
    return sum(kept_size(part, sizes) for part in expr.parts)


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
        self._plans: dict[int, tuple[Sequence[Expr], list[tuple[int, Any]]]] = {}

    def size(self, expr: Expr) -> int:
        return kept_size(expr, self.sizes)

    def is_full(self, expr: Expr) -> bool:
        return all(
            self.sizes.get(dim, dim.size) == dim.size and dim not in self.picks
            for dim in dims_of(expr)
        )

    def indices(self, expr: Expr) -> torch.Tensor:
        """Kept positions of ``expr``, ascending where the kept positions of its Dims are."""
        expr = resolve(expr)
        if isinstance(expr, Dim):
            pick = self.picks.get(expr)
            return torch.arange(self.sizes.get(expr, expr.size)) if pick is None else pick
        if isinstance(expr, Const):
            return torch.arange(expr.size)
        if isinstance(expr, Product):
            found = torch.zeros(1, dtype=torch.int64)
            for part in expr.factors:
                found = (found[:, None] * part.size + self.indices(part)[None, :]).flatten()
            return found
        pieces: list[torch.Tensor] = []
        offset = 0
        for part in expr.parts:
            pieces.append(self.indices(part) + offset)
            offset += part.size
        return torch.cat(pieces)

    def literal(self, value: Any, expr: Any) -> Any:
        """Respell an argument ``value`` by the expressions that a rule gave for it (None: unchanged)."""
        if expr is None:
            return value
        if isinstance(expr, tuple):
            return [self.literal(v, e) for v, e in zip(value, expr, strict=True)]
        return expr if isinstance(expr, int) else self.size(expr)

    def plan(self, dims: Sequence[Expr]) -> list[tuple[int, Any]]:
        """How to cut a tensor with these dims: (dim, count of first positions or index tensor) per cut."""
        cached = self._plans.get(id(dims))
        if cached is not None:
            return cached[1]
        steps: list[tuple[int, Any]] = []
        for position, expr in enumerate(dims):
            if self.is_full(expr):
                continue
            if isinstance(resolve(expr), Dim) and resolve(expr) not in self.picks:
                steps.append((position, self.size(expr)))
            else:
                steps.append((position, self.indices(expr)))
        self._plans[id(dims)] = (dims, steps)
        return steps

    def slice(self, tensor: torch.Tensor, dims: Sequence[Expr]) -> torch.Tensor:
        """Cut ``tensor`` to what is kept: views for first positions, copies for other index sets."""
        for position, cut in self.plan(dims):
            if isinstance(cut, int):
                tensor = tensor.narrow(position, 0, cut)
            else:
                tensor = tensor.index_select(position, cut.to(tensor.device))
        return tensor


def check_positions(name: str, size: int, positions: torch.Tensor) -> torch.Tensor:
    """Validate a kept index set: distinct, in range, at least one."""
    positions = torch.as_tensor(positions, dtype=torch.int64)
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
