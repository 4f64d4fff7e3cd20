"""Ordered dropout over the neurons of fully connected layers (FN3, section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nestify.groups import Graph
from nestify.passes.odo import choose_units

__all__ = ["Fn3Neuron"]


@dataclass(frozen=True, slots=True)
class Fn3Neuron:
    """``core``: always-active share; ``step``: quantum of sizes; ``where``: ``hidden`` or ``all`` groups."""

    name: ClassVar[str] = "fn3-neuron"
    core: float = 0.0
    step: int = 1
    where: str = "hidden"

    def apply(self, graph: Graph) -> Graph:
        return choose_units(graph, "neuron", core=self.core, step=self.step, where=self.where)
