"""What a choice of units keeps of every Dim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nestify.dims import Dim
from nestify.dims.selection import Keep, check_positions
from nestify.errors import UsageError
from nestify.graph.graph import Graph
from nestify.graph.groups import DimGroup
from nestify.graph.moves import Moves, width
from nestify.space import SearchSpace
from nestify.space.subnet import Subnet, is_size

__all__ = ["columns_of", "keep_of", "sizes_of"]


def keep_of(
    graph: Graph, groups: Mapping[str, DimGroup], space: SearchSpace, subnet: Mapping[str, Any]
) -> Keep:
    """What ``subnet`` keeps: the first positions of each group or block, or an explicit set.

    Raises:
        UsageError: an unknown unit or group, a size or position out of range.
    """
    if not hasattr(subnet, "values"):
        space.validate(subnet)  # says what a subnet is
    if all(map(is_size, subnet.values())):
        subnet = space.complete(subnet)
    sizes: dict[Dim, int] = {}
    picks: dict[Dim, torch.Tensor] = {}
    for name, kept in subnet.items():
        if name not in graph.moves and name not in groups:
            space.validate({name: 1})
        moves = graph.moves.get(name) or width(groups[name].dim)
        if is_size(kept):
            sizes |= _at_size(name, moves, int(kept))
        elif all(isinstance(table, range) for table in moves.values()):
            picks |= {dim: check_positions(name, dim.size, kept) for dim in moves}
        else:
            sizes |= _of_these(name, moves, kept)
    return Keep(sizes, picks)


def sizes_of(space: SearchSpace, subnet: Mapping[str, Any]) -> Subnet | None:
    """The sizes of all units, where ``subnet`` keeps the first positions of each; None where it
    keeps others, or as many as no unit may have.

    >>> from nestify.space import Unit
    >>> space = SearchSpace((Unit("a", "channel", 8),))
    >>> sizes_of(space, {"a": [0, 1, 2]}), sizes_of(space, {"a": [0, 2]})
    (Subnet({'a': 3}), None)

    Raises:
        UsageError: an unknown unit, or a size that it may not have.
    """
    if all(map(is_size, subnet.values())):
        return space.complete(subnet)
    sizes: dict[str, int] = {}
    for name, kept in subnet.items():
        unit, size = space.by_name.get(name), int(kept) if is_size(kept) else len(kept)
        first = is_size(kept) or list(kept) == list(range(size))
        if unit is None or size not in unit.choices or not first:
            return None
        sizes[name] = size
    return space.complete(sizes)


def columns_of(
    graph: Graph,
    space: SearchSpace,
    subnets: Sequence[Mapping[str, int]] | Mapping[str, Any],
) -> tuple[dict[Dim, NDArray[np.int64]], int]:
    """The kept sizes of many subnets, one column a Dim, and how many subnets there are.

    Raises:
        UsageError: an unknown unit, a size that it does not have, columns of several lengths.
    """
    if isinstance(subnets, Mapping):
        sizes, count = _checked(space, subnets)
    else:
        for subnet in subnets:
            space.validate(subnet)
        count = len(subnets)
        sizes = {u.name: [s.get(u.name, u.size) for s in subnets] for u in space.units}
    columns: dict[Dim, NDArray[np.int64]] = {}
    for unit in space.units:
        column = np.asarray(sizes.get(unit.name, np.full(count, unit.size)), dtype=np.int64)
        for dim, table in graph.moves[unit.name].items():
            columns[dim] = column if isinstance(table, range) else np.asarray(table)[column]
    return columns, count


def _checked(
    space: SearchSpace, columns: Mapping[str, Any]
) -> tuple[dict[str, NDArray[np.int64]], int]:
    """Columns of sizes by unit, each value one that the unit has."""
    found = {name: np.asarray(column) for name, column in columns.items()}
    lengths = {len(column) if column.ndim == 1 else -1 for column in found.values()}
    if len(lengths) != 1 or -1 in lengths:
        raise UsageError(
            "columns of sizes must be arrays of one dim and of the same length; "
            "for one subnet, pass a list of it: [subnet]"
        )
    for name, column in found.items():
        for size in set(column.tolist()):
            space.validate(Subnet({name: size}))
    return found, lengths.pop()


def _at_size(name: str, moves: Moves, size: int) -> dict[Dim, int]:
    full = len(next(iter(moves.values()))) - 1
    if not 1 <= size <= full:
        raise UsageError(f"size {size} of group {name!r} is out of range 1..{full}")
    return {dim: table[size] for dim, table in moves.items()}


def _of_these(name: str, moves: Moves, kept: Any) -> dict[Dim, int]:
    """An explicit set of the things that a unit counts one by one."""
    if any(dim.size > 1 for dim in moves):
        raise UsageError(
            f"unit {name!r} decides several dims together: give its size, not positions"
        )
    there = set(check_positions(name, len(moves), kept).tolist())
    return {dim: int(i in there) for i, dim in enumerate(moves)}
