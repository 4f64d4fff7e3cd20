"""What `nestify.transform` makes of a graph that was captured before: the capture takes longest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from nestify import NestedModel
from nestify.graph.graph import Graph
from nestify.passes import apply_passes, data_for, parse_recipe


def applied(graph: Graph, recipe: str, calibration: Iterable[Any] | None = None) -> NestedModel:
    """Apply the passes of ``recipe``; ``graph`` stays as it is."""
    passes = parse_recipe(recipe)
    graph = apply_passes(graph, passes, data_for(passes, calibration))
    return NestedModel(graph, graph.units, recipe)
