"""Depth: residual blocks ``add(x, f(x))`` whose ``f`` has one entry and one exit, found with dominators."""

from __future__ import annotations

from collections.abc import Iterator

import networkx as nx
from torch import fx

from nestify.rules import op_name, shape_of


def find_blocks(graph: fx.Graph) -> Iterator[tuple[str, str, str]]:
    """Yield (name, entry node, exit node) of every droppable residual block, in graph order.

    The sum must have the shape of its entry ``x``; ``x`` must dominate it (nothing else feeds ``f``) and it
    must post-dominate ``x`` (nothing else reads inside ``f``).
    """
    flow = _data_flow(graph)
    above = nx.immediate_dominators(flow, "input")
    below = nx.immediate_dominators(flow.reverse(copy=False), "output")
    order = {node: i for i, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if node not in flow or node.op != "call_function" or op_name(node.target) != "add":
            continue
        operands = [a for a in node.args[:2] if isinstance(a, fx.Node) and a in flow]
        if len(operands) != 2 or len({shape_of(a) for a in (*operands, node)}) != 1:
            continue
        entry = min(operands, key=order.__getitem__)
        if above.get(node) is entry and below.get(entry) is node:
            branch = max(operands, key=order.__getitem__)
            yield _name(branch, entry), entry.name, node.name


def _data_flow(graph: fx.Graph) -> nx.DiGraph:
    """Nodes that depend on an input, between a virtual input and output."""
    flow = nx.DiGraph()
    for node in graph.nodes:
        if node.op == "placeholder":
            flow.add_edge("input", node)
            continue
        sources = [s for s in node.all_input_nodes if s in flow]
        flow.add_edges_from((s, "output" if node.op == "output" else node) for s in sources)
    if "output" in flow:
        live = nx.ancestors(flow, "output") | {"output"}
        flow.remove_nodes_from([n for n in list(flow) if n not in live and n != "input"])
    return flow


def _name(branch: fx.Node, entry: fx.Node) -> str:
    """The innermost module that holds the whole branch, else the name of its last node."""
    path = str(branch.meta.get("path", ""))
    return path.rpartition(".")[0] or path or branch.name
