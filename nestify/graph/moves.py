"""What a unit moves: for each of its sizes, how much it keeps of every Dim that it decides.

There is one kind of unit. A width moves one Dim, position by position. A depth moves the presence
of residual blocks, each from 0 to 1. A level moves any Dims together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nestify.dims import Dim
from nestify.errors import UsageError
from nestify.space import Unit

__all__ = ["Moves", "check_moves", "one_by_one", "width"]

Moves = Mapping[Dim, Sequence[int]]
"""For each Dim, the kept size at every size of the unit, counted from 0."""


def width(dim: Dim) -> Moves:
    """A unit keeps as much of ``dim`` as its own size says.

    >>> dim = Dim(8)
    >>> width(dim)[dim][3]
    3
    """
    return {dim: range(dim.size + 1)}


def one_by_one(dims: Sequence[Dim]) -> Moves:
    """A unit counts ``dims`` of size 1, such as the presence of blocks: the last is dropped first.

    >>> first, second = Dim(1), Dim(1)
    >>> moves = one_by_one([first, second])
    >>> moves[first], moves[second]
    ((0, 1, 1), (0, 0, 1))
    """
    return {
        dim: tuple(int(size > i) for size in range(len(dims) + 1)) for i, dim in enumerate(dims)
    }


def check_moves(units: Sequence[Unit], moves: Mapping[str, Moves]) -> None:
    """Refuse tables that do not fit their units, and Dims that two units move.

    Raises:
        UsageError: naming the units.
    """
    by_dim: dict[Dim, str] = {}
    for unit in units:
        for dim, kept in moves[unit.name].items():
            other = by_dim.setdefault(dim, unit.name)
            if other != unit.name:
                raise UsageError(
                    f"units {other!r} and {unit.name!r} drop the same block, or decide the same "
                    "dim: two passes of the recipe choose it; drop one of them"
                )
            if len(kept) != unit.size + 1 or kept[unit.size] != dim.size or sorted(kept) != [*kept]:
                raise UsageError(
                    f"unit {unit.name!r} of size {unit.size} keeps {list(kept)} of a dim of "
                    f"{dim.size}: it must keep a size for each of 0..{unit.size}, never fewer than "
                    "for a smaller one, and the whole dim at last"
                )
