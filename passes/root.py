"""``root-N``: fewer groups the deeper: ``max(1, N / 2^s)`` in stage s (Deep Roots, section 4.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nestify.passes.deep_roots.filter_groups import FilterGroups

__all__ = ["Root"]


@dataclass(frozen=True, slots=True)
class Root(FilterGroups):
    """Filter groups by stage.

    >>> [Root(8).degree(stage) for stage in range(5)]
    [8, 4, 2, 1, 1]
    """

    name: ClassVar[str] = "root-N"

    def degree(self, stage: int) -> int:
        """How many filter groups the convolutions of a stage get."""
        return max(1, self.number >> stage)
