"""``tree-N``: more groups the deeper: ``N * 2^s`` in stage s (Deep Roots, section 4.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nestify.passes.deep_roots.filter_groups import FilterGroups

__all__ = ["Tree"]


@dataclass(frozen=True, slots=True)
class Tree(FilterGroups):
    """Filter groups by stage.

    >>> [Tree(8).degree(stage) for stage in range(5)]
    [8, 16, 32, 64, 128]
    """

    name: ClassVar[str] = "tree-N"

    def degree(self, stage: int) -> int:
        """How many filter groups the convolutions of a stage get."""
        return self.number << stage
