"""Pair the calls of two traces of one model."""

from __future__ import annotations

import difflib

from torch import fx

from nestify.rules import facts_of, op_name

__all__ = ["align", "calls_of"]


# --- two traces of one model ----------------------------------------------------------------------


def calls_of(graph: fx.Graph) -> list[fx.Node]:
    """The calls that compute; where memory is laid out anew may differ between two traces."""
    calls = (node for node in graph.nodes if node.op == "call_function")
    return [node for node in calls if not facts_of(node.target).copies]


def align(
    graph: fx.Graph, other: fx.Graph
) -> tuple[list[tuple[fx.Node, fx.Node]], list[fx.Node], list[fx.Node]]:
    """Pair the calls of two traces of one model; then those that only one of them makes."""
    mine, theirs = calls_of(graph), calls_of(other)
    keys = [[(n.meta["path"], op_name(n.target)) for n in calls] for calls in (mine, theirs)]
    pairs: list[tuple[fx.Node, fx.Node]] = []
    here: list[fx.Node] = []
    there: list[fx.Node] = []
    matcher = difflib.SequenceMatcher(None, *keys, autojunk=False)
    for tag, a, b, c, d in matcher.get_opcodes():
        if tag == "equal":
            pairs += zip(mine[a:b], theirs[c:d], strict=True)
        else:
            here += mine[a:b]
            there += theirs[c:d]
    return pairs, here, there
