"""Immediate dominators of a graph, in near-linear time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import fx

__all__ = ["immediate_dominators"]


def immediate_dominators(
    sources: Mapping[fx.Node, Sequence[fx.Node]],
) -> dict[fx.Node, fx.Node | None]:
    """For each node the last one that every path to it passes, or None where only the start is.

    ``sources`` lists the nodes in topological order, each with its predecessors; those with none
    hang from one virtual start. In a graph without cycles a node's dominator is the lowest common
    ancestor, in the tree of dominators, of its predecessors. Jumps of growing length up the tree
    find it in logarithmic time, where plain steps would make long parallel chains quadratic.
    """
    tree = _Tree()
    place: dict[fx.Node, int] = {}
    nodes: list[fx.Node | None] = [None]
    for node, feeds in sources.items():
        parent = place[feeds[0]] if feeds else 0
        for feed in feeds[1:]:
            parent = tree.common(parent, place[feed])
        place[node] = tree.add(parent)
        nodes.append(node)
    return {node: nodes[tree.parent[at]] for node, at in place.items()}


class _Tree:
    """A growing tree with lowest common ancestors in logarithmic time; 0 is its root."""

    def __init__(self) -> None:
        self.parent, self.jump, self.depth = [0], [0], [0]

    def add(self, parent: int) -> int:
        """Hang a new node from ``parent``: its jump is one step, or joins two of one length."""
        over = self.jump[parent]
        lengths = (
            self.depth[parent] - self.depth[over],
            self.depth[over] - self.depth[self.jump[over]],
        )
        self.parent.append(parent)
        self.depth.append(self.depth[parent] + 1)
        self.jump.append(self.jump[over] if lengths[0] == lengths[1] else parent)
        return len(self.parent) - 1

    def common(self, a: int, b: int) -> int:
        """The lowest node that both ``a`` and ``b`` hang from."""
        if self.depth[a] < self.depth[b]:
            a, b = b, a
        while self.depth[a] > self.depth[b]:
            far = self.depth[self.jump[a]] >= self.depth[b]
            a = self.jump[a] if far else self.parent[a]
        while a != b:
            far = self.jump[a] != self.jump[b]
            a, b = (self.jump[a], self.jump[b]) if far else (self.parent[a], self.parent[b])
        return a
