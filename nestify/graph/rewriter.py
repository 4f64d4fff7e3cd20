"""Rewriting: a captured graph with some calls, literals or tensors changed, analysed again.

A rewrite pass edits a copy; the graph it was given, the user's model and its tensors stay as they
are. What is computed about each value (shape and dtype) is computed anew for what changed, and the
analysis runs on the result as on any captured model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from nestify.capture.autocast import blocks_of, inside, place_in
from nestify.capture.lowering import drop_unused
from nestify.dims.selection import Keep
from nestify.graph.analysis import analyse
from nestify.graph.graph import Graph
from nestify.graph.groups import Change
from nestify.rules import bind_arguments
from nestify.support.module_tree import made_like

__all__ = ["Rewriter", "permuted"]


class Rewriter:
    """Edits a copy of an analysed graph; ``finish`` analyses what came of it.

    Nodes are those of ``graph``: pass one to name the place of an edit.

    >>> from nestify.capture.captured import capture
    >>> graph = analyse(capture(torch.nn.Conv2d(4, 8, 1), (torch.randn(2, 4, 3, 3),)))
    >>> edit = Rewriter(graph)
    >>> edit.replace_tensor("weight", torch.nn.Parameter(torch.randn(8, 2, 1, 1)))
    >>> edit.set_argument(next(iter(graph.calls)), "groups", 2)
    >>> edit.finish(()).tensor_dims["weight"][1].size
    2
    """

    def __init__(self, graph: Graph) -> None:
        self.source = graph
        self.graph = fx.Graph()
        self.tensors = dict(graph.capture.tensors)
        self.aliases = dict(graph.capture.aliases)
        self._new: dict[fx.Node, fx.Node] = {}
        for node in graph.nodes:
            made = self.graph.node_copy(node, self._new.__getitem__)
            if made.name != node.name:  # what is known of a call in training goes by its name
                raise AssertionError(f"node {node.name} became {made.name}")
            made.meta = dict(node.meta)
            self._new[node] = made

    def set_argument(self, node: fx.Node, name: str, value: Any) -> None:
        """Give an argument of a call another value; nodes in it are those of the source graph."""
        made = self._new[node]
        names = list(bind_arguments(node))
        value = fx.map_arg(value, self._moved)
        if names.index(name) < len(made.args):
            made.update_arg(names.index(name), value)
        else:
            made.update_kwarg(name, value)

    def replace_tensor(self, name: str, tensor: torch.Tensor) -> None:
        """Put another parameter or buffer in the place of one, under its name."""
        if name not in self.tensors:
            raise KeyError(f"no tensor {name!r}")
        self.tensors[name] = tensor

    def add_tensor(self, before: fx.Node, name: str, tensor: torch.Tensor) -> fx.Node:
        """Read a new parameter or buffer, of a name not yet taken, before a node of the source."""
        if name in self.tensors or name in self.aliases:
            raise KeyError(f"the name {name!r} is taken")
        self.tensors[name] = tensor
        self.aliases[name] = name
        with self.graph.inserting_before(self._moved(before)):
            made = self.graph.get_attr(name)
        made.meta = {"path": ""}
        return made

    def tensor_node(self, before: fx.Node, name: str, tensor: torch.Tensor) -> fx.Node:
        """:meth:`add_tensor`, or the node that reads that tensor already."""
        known = self.graph.find_nodes(op="get_attr", target=name)
        return known[0] if known else self.add_tensor(before, name, tensor)

    def drop_tensor(self, name: str) -> None:
        """Take a tensor out of the model; nothing must read it any more when the edit is done."""
        del self.tensors[name]
        for alias in [alias for alias, own in self.aliases.items() if own == name]:
            del self.aliases[alias]

    def insert_call(
        self,
        after: fx.Node,
        target: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any] | None = None,
        *,
        path: str,
    ) -> fx.Node:
        """Call an op after ``after``, on nodes of either graph; nothing reads it yet."""
        args, kwargs = fx.map_arg((args, dict(kwargs or {})), self._moved)
        place = self._moved(after)
        with self.graph.inserting_after(place):
            made = self.graph.call_function(target, args, kwargs)
        made.meta = {"path": path, "stack_trace": place.meta.get("stack_trace")}
        place_in(made, blocks_of(place))
        return made

    def divert(self, node: fx.Node, to: fx.Node) -> None:
        """Let every reader of ``node`` read ``to`` in its place, but what computes ``to``."""
        old, new = self._moved(node), self._moved(to)
        behind: set[fx.Node] = set()
        stack = [new]
        while stack:
            reader = stack.pop()
            if reader not in behind:
                behind.add(reader)
                stack.extend(source for source in reader.all_input_nodes if source is not old)
        old.replace_all_uses_with(new, delete_user_cb=lambda reader: reader not in behind)

    def free_name(self, path: str) -> str:
        """``path``, or with the first number behind it that makes no name of the model its own."""
        taken = [*self.tensors, *self.aliases]
        taken += [name for name, _ in self.source.capture.model.named_modules()]
        candidate, number = path, 1
        while any(name == candidate or name.startswith(f"{candidate}.") for name in taken):
            number += 1
            candidate = f"{path}{number}"
        return candidate

    def finish(self, changes: tuple[Change, ...], *, preserves: bool = False) -> Graph:
        """Analyse the edited graph; ``changes`` say what was done, and are kept with it.

        An edit that ``preserves`` the function and its cost leaves nothing to compare with an
        original.
        """
        drop_unused(self.graph)
        self._revalue()
        self.graph.lint()
        captured = dataclasses.replace(
            self.source.capture, graph=self.graph, tensors=self.tensors, aliases=self.aliases
        )
        rewritten = analyse(captured)
        rewritten.changes = (*self.source.changes, *changes)
        rewritten.original = self.source.original or (None if preserves else self.source)
        return rewritten

    def _moved(self, node: fx.Node) -> fx.Node:
        return self._new.get(node, node)

    def _revalue(self) -> None:
        """Shapes of new and replaced tensors, and of every call that reads a changed one."""
        values = (node.meta["val"] for node in self.source.nodes if "val" in node.meta)
        mode = next(v.fake_mode for v in values if hasattr(v, "fake_mode"))
        changed: set[fx.Node] = set()
        for node in self.graph.nodes:
            if node.op == "get_attr":
                tensor = self.tensors[str(node.target)]
                if tensor is not self.source.capture.tensors.get(str(node.target)):
                    with mode:
                        node.meta["val"] = torch.empty(
                            tensor.shape, dtype=tensor.dtype, device=tensor.device
                        )
                    changed.add(node)
            elif node.op == "call_function" and (
                "val" not in node.meta or changed.intersection(node.all_input_nodes)
            ):
                args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
                with mode, torch.no_grad(), inside(blocks_of(node)):
                    node.meta["val"] = node.target(*args, **kwargs)
                changed.add(node)


def permuted(graph: Graph, order: Mapping[Any, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every tensor of ``graph`` that has one of these Dims, its positions in the order given.

    An order holds each position of its Dim once. As all sites of a Dim move alike, the function
    of the network stays; what is kept of a Dim is all of it, in another order.
    """
    keep = Keep({}, dict(order))
    found: dict[str, torch.Tensor] = {}
    for name, tensor in graph.capture.tensors.items():
        dims = graph.tensor_dims[name]
        if all(keep.is_full(expr) for expr in dims):
            continue
        found[name] = made_like(tensor, keep.slice(tensor.detach(), dims).clone())
    return found
