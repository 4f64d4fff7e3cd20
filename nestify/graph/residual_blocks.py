"""Depth: residual blocks ``add(x, f(x))`` whose ``f`` has one entry and one exit: dominators."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from torch import fx

from nestify.graph.dominators import immediate_dominators
from nestify.rules import bind_arguments, is_mutable, op_name, shape_of

__all__ = ["Residual", "find_blocks"]


class Residual(NamedTuple):
    """A sum ``exit`` of a ``branch`` and of what ``stays`` when the branch is dropped.

    All paths from ``entry`` lead to ``exit``, and all that feeds the sum comes from ``entry``. What
    stays is the entry itself, or a projection of it.
    """

    name: str
    entry: fx.Node
    exit: fx.Node
    stays: fx.Node
    branch: fx.Node


def find_blocks(graph: fx.Graph, contracts: Callable[[fx.Node], bool]) -> Iterator[Residual]:
    """Yield every droppable residual block, in graph order; ``contracts`` tells convolutions,
    linear maps and matrix products.

    The sum must have the shape and type of what stays; the entry must dominate it (nothing else
    feeds the block) and it must post-dominate the entry (nothing else reads inside the block).
    Where neither summand is the entry, one with a single contraction is the projection of a longer
    branch: FN3's layers keep their projection shortcuts (section 3).
    """
    sources = _data_flow(graph)
    readers: dict[fx.Node, list[fx.Node]] = {node: [] for node in sources}
    for node, feeds in sources.items():
        for source in feeds:
            readers[source].append(node)
    above = immediate_dominators(sources)
    below = immediate_dominators(dict(reversed(readers.items())))
    for node in sources:
        entry = above[node]
        if not _is_plain_sum(node) or entry is None or below[entry] is not node:
            continue
        operands = [a for a in node.args[:2] if isinstance(a, fx.Node) and a in sources]
        if len(operands) != 2 or operands[0] is operands[1]:
            continue
        if entry in operands:
            stays, branch = sorted(operands, key=lambda operand: operand is not entry)
        else:
            counts = [_contractions(operand, entry, sources, contracts) for operand in operands]
            if min(counts) > 1 or max(counts) < 2:
                continue
            stays, branch = operands if counts[0] < counts[1] else reversed(operands)
        if _type(stays) == _type(node):
            yield Residual(_name(branch, entry), entry, node, stays, branch)


def _is_plain_sum(node: fx.Node) -> bool:
    if node.op != "call_function" or op_name(node.target) != "add":
        return False
    return bind_arguments(node).get("alpha", 1) == 1


def _type(node: fx.Node) -> tuple[tuple[int, ...], object]:
    return shape_of(node), getattr(node.meta["val"], "dtype", None)


def _contractions(
    operand: fx.Node,
    entry: fx.Node,
    sources: Mapping[fx.Node, Sequence[fx.Node]],
    contracts: Callable[[fx.Node], bool],
) -> int:
    """How many contractions lie between ``entry`` and ``operand``."""
    seen = {entry}
    stack = [operand]
    count = 0
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            count += contracts(node)
            stack.extend(sources[node])
    return count


def _data_flow(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """The nodes between inputs and output, in order, each with those of its operands that are.

    What is written into a buffer counts as an output.
    """
    fed: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        feeds = [source for source in node.all_input_nodes if source in fed]
        if feeds or node.op == "placeholder":
            fed[node] = feeds
    live: set[fx.Node] = set()
    for node in reversed(fed):
        if node.op == "output" or node in live or is_mutable(node):
            live.add(node)
            live.update(fed[node])
    return {node: feeds for node, feeds in fed.items() if node in live}


def _name(branch: fx.Node, entry: fx.Node) -> str:
    """The innermost module that holds the whole branch, else the name of its last node."""
    path = str(branch.meta.get("path", ""))
    return path.rpartition(".")[0] or path or branch.name
