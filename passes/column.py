"""``column-N``: as many groups at every depth: N (Deep Roots, section 4.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nestify.passes.deep_roots.filter_groups import FilterGroups

__all__ = ["Column"]


@dataclass(frozen=True, slots=True)
class Column(FilterGroups):
    """Filter groups by stage.

    >>> [Column(8).degree(stage) for stage in range(5)]
    [8, 8, 8, 8, 8]
    """

    name: ClassVar[str] = "column-N"

    def degree(self, stage: int) -> int:
        """How many filter groups the convolutions of a stage get."""
        return self.number
