"""Depth: residual blocks ``add(x, f(x))`` whose ``f`` has one entry and one exit: dominators."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import fx

from nestify.rules import op_name, shape_of


def find_blocks(graph: fx.Graph) -> Iterator[tuple[str, str, str]]:
    """Yield (name, entry node, exit node) of every droppable residual block, in graph order.

    The sum must have the shape of its entry ``x``; ``x`` must dominate it (nothing else feeds
    ``f``) and it must post-dominate ``x`` (nothing else reads inside ``f``).
    """
    sources = _data_flow(graph)
    readers: dict[fx.Node, list[fx.Node]] = {node: [] for node in sources}
    for node, feeds in sources.items():
        for source in feeds:
            readers[source].append(node)
    above = immediate_dominators(sources)
    below = immediate_dominators(dict(reversed(readers.items())))
    order = {node: i for i, node in enumerate(sources)}
    for node in sources:
        if node.op != "call_function" or op_name(node.target) != "add":
            continue
        operands = [a for a in node.args[:2] if isinstance(a, fx.Node) and a in order]
        if len(operands) != 2 or len({shape_of(a) for a in (*operands, node)}) != 1:
            continue
        entry, branch = sorted(operands, key=order.__getitem__)
        if above[node] is entry and below[entry] is node:
            yield _name(branch, entry), entry.name, node.name


def _data_flow(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """The nodes between inputs and output, in order, each with those of its operands that are."""
    fed: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        feeds = [source for source in node.all_input_nodes if source in fed]
        if feeds or node.op == "placeholder":
            fed[node] = feeds
    live: set[fx.Node] = set()
    for node in reversed(fed):
        if node.op == "output" or node in live:
            live.add(node)
            live.update(fed[node])
    return {node: feeds for node, feeds in fed.items() if node in live}


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


def _name(branch: fx.Node, entry: fx.Node) -> str:
    """The innermost module that holds the whole branch, else the name of its last node."""
    path = str(branch.meta.get("path", ""))
    return path.rpartition(".")[0] or path or branch.name
