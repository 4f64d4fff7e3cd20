"""Choosing ordered-dropout units: which groups are elastic, from which minimum, in which steps.

FN3 (Cui et al., 2020) drops the last channels of layers whose outputs pass a nonlinearity and are
summed by the next layer. ``hidden`` generalises that to any graph: groups on no residual stream,
that pass a nonlinearity, and that are not the last features pooled into a classifier. ``all`` takes
every elastic group.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from nestify.dims import Dim, dims_of
from nestify.graph.graph import Graph
from nestify.graph.groups import DimGroup
from nestify.passes.protocol import Data, Role
from nestify.rules import facts_of
from nestify.space import Unit
from nestify.space.draw_laws import DRAWS
from nestify.support.arguments import check_fields, one_of, real, whole

__all__ = ["OrderedDropout"]


@dataclass(frozen=True, slots=True)
class OrderedDropout:
    """Every group of one ``kind`` becomes a unit, dropped from its end.

    ``core`` is the always-active share, ``step`` the quantum of sizes, ``where`` is ``hidden`` or
    ``all``, ``draw`` is how training draws sizes (:data:`nestify.space.draw_laws.DRAWS`).

    Raises:
        UsageError: an option out of range.
    """

    name: ClassVar[str]
    kind: ClassVar[str]
    role: ClassVar[Role] = "chooses"
    core: float = 0.0
    step: int = 1
    where: str = "hidden"
    draw: str = "mixture"

    def __post_init__(self) -> None:
        check_fields(
            self,
            f"pass {self.name}",
            core=real(0, 1),
            step=whole(1),
            where=one_of("hidden", "all"),
            draw=one_of(*DRAWS),
        )

    def apply(self, graph: Graph, data: Data) -> Graph:
        """Add this pass's units to the search space of ``graph``."""
        hidden = _hidden(graph) if self.where == "hidden" else None
        return graph.with_units(
            [
                self._unit(group)
                for group in graph.groups
                if group.kind == self.kind and (hidden is None or group.dim in hidden)
            ]
        )

    def _unit(self, group: DimGroup) -> Unit:
        core = max(1, math.ceil(self.core * group.size))
        return Unit(group.name, self.kind, group.size, core, self.step, self.draw)


def _hidden(graph: Graph) -> set[Dim]:
    bent: set[Dim] = set()
    residual: set[Dim] = set()
    for node, call in graph.calls.items():
        if facts_of(node.target).nonlinear:
            bent.update(_dims(graph, node))
        elif call.op == "add" and _joins_activations(graph, node):
            residual.update(_dims(graph, node))
    return bent - residual - _pooled_features(graph)


def _dims(graph: Graph, node: fx.Node) -> Iterator[Dim]:
    return (dim for expr in graph.dims[node] for dim in dims_of(expr))


def _joins_activations(graph: Graph, node: fx.Node) -> bool:
    """Whether both operands of a sum carry data of the input, not only parameters."""
    operands = [a for a in node.args[:2] if isinstance(a, fx.Node)]
    return len(operands) == 2 and all(a.op == "placeholder" or a in graph.calls for a in operands)


def _pooled_features(graph: Graph) -> set[Dim]:
    """Dims of the features that are pooled and then read by the last linear map of an output."""
    output = next(node for node in graph.nodes if node.op == "output")
    features: set[Dim] = set()
    for classifier in _contractions_behind(graph, output)[0]:
        producers, pooled = _contractions_behind(graph, classifier)
        if pooled:
            features.update(dim for node in producers for dim in _dims(graph, node))
    return features


def _contractions_behind(graph: Graph, node: fx.Node) -> tuple[list[fx.Node], bool]:
    """The nearest contractions that feed ``node``, and whether pooling lies between."""
    found: list[fx.Node] = []
    pooled = False
    seen: set[fx.Node] = set()
    stack = list(node.all_input_nodes)
    while stack:
        source = stack.pop()
        if source in seen or source not in graph.calls:
            continue
        seen.add(source)
        if graph.calls[source].macs:
            found.append(source)
            continue
        pooled |= facts_of(source.target).pools
        stack.extend(source.all_input_nodes)
    return found, pooled
