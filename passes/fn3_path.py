"""Ordered dropout over the parallel paths of grouped convolutions (FN3, section 4: ResNeXt)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nestify.groups import Graph
from nestify.passes.odo import choose_units

__all__ = ["Fn3Path"]


@dataclass(frozen=True, slots=True)
class Fn3Path:
    """``core``: always-active share; ``step``: quantum of sizes; ``where``: ``hidden`` or ``all`` groups."""

    name: ClassVar[str] = "fn3-path"
    core: float = 0.0
    step: int = 1
    where: str = "all"

    def apply(self, graph: Graph) -> Graph:
        return choose_units(graph, "path", core=self.core, step=self.step, where=self.where)
