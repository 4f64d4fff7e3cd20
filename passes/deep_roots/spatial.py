"""Finding the convolutions that Deep Roots groups: spatial ones after the first, stage by stage.

A stage ends where the resolution of the map changes (by half as much again or more): counted along
the graph, so that branches of one resolution are one stage and a decoder's stages come after its
encoder's (Ioannou et al., 2017, section 4.2: the degree of grouping varies with depth).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from torch import fx

from nestify.graph.dominators import immediate_dominators
from nestify.graph.graph import Graph
from nestify.rules import Call, facts_of, shape_of

__all__ = ["Spatial", "embeddings", "find_spatial", "joins_activations"]

_STEP = 1.5  # a window without padding shrinks a map by less, a stride of 2 by more


@dataclass(frozen=True, slots=True)
class Spatial:
    """One spatial convolution: kernel > 1, one group, not the first of the network.

    ``nodes`` are its calls (several where weights are shared), ``stage`` counts from 0. ``mixed``
    says that whatever reads its channels is a 1 x 1 convolution (or a linear layer): the low-
    dimensional embedding of its root module. ``obstacle`` is why it must stay as it is, or empty.
    """

    name: str
    weight: str
    nodes: tuple[fx.Node, ...]
    stage: int
    inputs: int
    outputs: int
    mixed: bool
    obstacle: str


def find_spatial(graph: Graph) -> tuple[Spatial, ...]:
    """Every spatial convolution of ``graph`` after the first, in graph order.

    >>> import nestify, torch
    >>> net = torch.nn.Sequential(*(torch.nn.Conv2d(8, 8, k) for k in (3, 5, 1)))
    >>> found = find_spatial(nestify.trace(net, torch.randn(1, 8, 9, 9)))
    >>> [(conv.name, conv.stage, conv.mixed) for conv in found]
    [('1', 0, True)]
    """
    calls: dict[str, list[fx.Node]] = {}
    for node, call in graph.calls.items():
        if facts_of(node.target).slides and not _is_pointwise(call) and call.args["groups"] == 1:
            calls.setdefault(_operand(call, "weight").name, []).append(node)
    behind, levels = _behind_convolution(graph), _levels(graph)
    later = [nodes for nodes in calls.values() if all(node in behind for node in nodes)]
    stages = sorted({levels[nodes[0]] for nodes in later})
    before, mixed, shortcuts = _before_contraction(graph), _mixed(graph), _shortcuts(graph)
    found: list[Spatial] = []
    for nodes in later:
        weight = _operand(graph.calls[nodes[0]], "weight")
        tensor = str(weight.target)
        outputs, inputs, *_ = shape_of(weight)
        obstacle = ""
        if weight.op != "get_attr" or set(weight.users) != set(nodes):
            obstacle = "its kernel is computed or read elsewhere too"
        elif not all(node in before for node in nodes):
            obstacle = "it is the classifier: nothing behind it mixes channels"
        elif shortcuts.intersection(nodes):
            obstacle = "it is the projection of a shortcut"
        found.append(
            Spatial(
                _name(nodes[0], weight),
                tensor,
                tuple(nodes),
                stages.index(levels[nodes[0]]),
                inputs,
                outputs,
                all(mixed[node] for node in nodes),
                obstacle,
            )
        )
    return tuple(found)


def embeddings(graph: Graph, conv: Spatial) -> list[fx.Node]:
    """The 1 x 1 convolutions and linear maps that mix the channels of ``conv``, in graph order."""
    behind = set(conv.nodes)
    found: list[fx.Node] = []
    for node in graph.nodes:
        if node not in graph.calls or not behind.intersection(node.all_input_nodes):
            continue
        if not graph.calls[node].macs:
            if not joins_activations(graph, node):
                behind.add(node)
        elif node not in behind and _mixes(graph.calls[node]):
            found.append(node)
    return found


def joins_activations(graph: Graph, node: fx.Node) -> bool:
    """Whether ``node`` sums two operands that both carry data of the input."""
    if node not in graph.calls or graph.calls[node].op not in ("add", "sub"):
        return False
    operands = [a for a in node.args[:2] if isinstance(a, fx.Node)]
    return len(operands) == 2 and all(a.op == "placeholder" or a in graph.calls for a in operands)


def _name(node: fx.Node, weight: fx.Node) -> str:
    """The module that holds the kernel, or the one that calls where the kernel is computed."""
    if weight.op == "get_attr":
        return str(weight.target).rpartition(".")[0] or str(weight.target)
    return str(node.meta["path"]) or node.name


def _operand(call: Call, name: str) -> fx.Node:
    node = call.args[name]
    assert isinstance(node, fx.Node)
    return node


def _is_pointwise(call: Call) -> bool:
    return all(size == 1 for size in shape_of(_operand(call, "weight"))[2:])


def _behind_convolution(graph: Graph) -> set[fx.Node]:
    """The nodes that some convolution feeds; a convolution that none feeds is a first one."""
    found: set[fx.Node] = set()
    for node in graph.calls:
        sources = node.all_input_nodes
        if any(s in found or _convolves(graph, s) for s in sources):
            found.add(node)
    return found


def _convolves(graph: Graph, node: fx.Node) -> bool:
    return node in graph.calls and facts_of(node.target).slides


def _before_contraction(graph: Graph) -> set[fx.Node]:
    """The nodes that feed some convolution, linear map or other contraction."""
    found: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        readers = node.users
        if any(r in found or (r in graph.calls and graph.calls[r].macs) for r in readers):
            found.add(node)
    return found


def _mixed(graph: Graph) -> dict[fx.Node, bool]:
    """For each node, whether every path on from it comes to a layer that mixes its channels.

    Norms, activations, pools, views, gates and ``cat`` keep channels apart and are followed; a sum
    of two activations is not, as a residual stream carries its operands past the mixing layer.
    """
    known: dict[fx.Node, bool] = {}
    for node in reversed(graph.nodes):
        known[node] = bool(node.users) and all(_ends_mixed(graph, r, known) for r in node.users)
    return known


def _ends_mixed(graph: Graph, reader: fx.Node, known: dict[fx.Node, bool]) -> bool:
    call = graph.calls.get(reader)
    if call is None:  # the output
        return False
    if call.macs:
        return _mixes(call)
    return not joins_activations(graph, reader) and known[reader]


def _mixes(call: Call) -> bool:
    """Whether a call makes each output of all channels of a position: the embedding."""
    if facts_of(call.node.target).slides:
        return _is_pointwise(call) and call.args["groups"] == 1
    return call.op == "linear"


class _Place(NamedTuple):
    """How many changes of resolution lie before a value, and its map's side in pixels."""

    level: int
    side: float


def _levels(graph: Graph) -> dict[fx.Node, int]:
    """For each node, the number of changes of resolution on the way to it."""
    ranks = [len(shape_of(n)) for n, c in graph.calls.items() if facts_of(c.node.target).slides]
    rank = max(ranks, default=4)
    places: dict[fx.Node, _Place] = {}
    for node in graph.nodes:
        if node.op == "get_attr" or node.op == "output":
            continue
        sources = [places[s] for s in node.all_input_nodes if s in places]
        side = _side(node, rank)
        deepest = max(sources, default=_Place(0, side or 1.0))
        if side is None:  # not a map: tokens, features
            places[node] = deepest
            continue
        alike = [p for p in sources if max(p.side, side) < _STEP * min(p.side, side)]
        level = max(alike).level if alike else deepest.level + bool(sources)
        places[node] = _Place(level, side)
    return {node: place.level for node, place in places.items()}


def _side(node: fx.Node, rank: int) -> float | None:
    shape = getattr(node.meta["val"], "shape", ())
    if len(shape) != rank or rank < 3:
        return None
    return math.prod(max(1, int(n)) for n in shape[2:]) ** (1 / (rank - 2))


def _shortcuts(graph: Graph) -> set[fx.Node]:
    """Convolutions that are alone on one side of a residual sum that has more on its other side."""
    sources: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "placeholder" or node in graph.calls:
            sources[node] = [s for s in node.all_input_nodes if s in sources]
    entries = immediate_dominators(sources)
    found: set[fx.Node] = set()
    for node in graph.calls:
        if joins_activations(graph, node):
            branches = [
                list(_branch(graph, operand, entries[node]))
                for operand in node.args[:2]
                if isinstance(operand, fx.Node)
            ]
            short, long = sorted(branches, key=len)
            if len(short) == 1 < len(long):
                found.update(short)
    return found


def _branch(graph: Graph, last: fx.Node, entry: fx.Node | None) -> Iterator[fx.Node]:
    """The convolutions between ``entry`` and ``last``."""
    stack, seen = [last], {entry}
    while stack:
        node = stack.pop()
        if node in seen or node not in graph.calls:
            continue
        seen.add(node)
        if _convolves(graph, node):
            yield node
        stack.extend(node.all_input_nodes)
