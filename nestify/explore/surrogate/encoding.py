"""Subnets as rows of integers: the place of each size among the legal ones of its unit.

A search that moves thousands of subnets a round has no time for an object each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nestify.explore.moves import choices
from nestify.space import SearchSpace, Subnet

__all__ = ["Genes", "Rows"]

Rows = NDArray[np.int64]


class Genes:
    """The rows of a space: every integer from 0 to ``most`` of its unit is legal.

    Example:
        >>> from nestify.space import Unit
        >>> genes = Genes(SearchSpace((Unit("conv1", "channel", size=64, minimum=8, step=8),)))
        >>> genes.most, genes.subnet(np.array([3]))
        (array([7]), Subnet({'conv1': 32}))
    """

    def __init__(self, space: SearchSpace) -> None:
        self.units = space.units
        self._columns = [(unit, np.array(choices(unit), np.int64)) for unit in space.units]
        self.most: Rows = np.array([len(sizes) - 1 for _, sizes in self._columns], np.int64)

    def subnet(self, row: NDArray[Any]) -> Subnet:
        """The subnet of one row."""
        places = zip(self._columns, row, strict=True)
        return Subnet({unit.name: int(sizes[int(place)]) for (unit, sizes), place in places})

    def rows(self, subnets: Sequence[Subnet]) -> Rows:
        """A row for each subnet."""
        rows = [
            [int(np.searchsorted(sizes, subnet[unit.name])) for unit, sizes in self._columns]
            for subnet in subnets
        ]
        return np.array(rows, dtype=np.int64).reshape(-1, len(self.units))

    def sizes(self, rows: Rows) -> dict[str, NDArray[np.int64]]:
        """The sizes of each unit, a column for each, as costs are estimated from."""
        return {unit.name: sizes[rows[:, k]] for k, (unit, sizes) in enumerate(self._columns)}

    def shares(self, rows: Rows) -> NDArray[np.float64]:
        """What each unit keeps of its size, a column for each."""
        columns = [sizes[rows[:, k]] / unit.size for k, (unit, sizes) in enumerate(self._columns)]
        return np.stack(columns, axis=1)
