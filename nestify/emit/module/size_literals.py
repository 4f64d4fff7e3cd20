"""Literals of a subnet: sizes that what is kept decides, and sizes that only the batch of the call
decides.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_aggregate

from nestify.dims import Const, Dim, Expr, Product, resolve
from nestify.dims.fold import Fold
from nestify.dims.selection import Keep
from nestify.graph.graph import Graph
from nestify.rules import bind_arguments, facts_of

__all__ = ["Spelling"]


class Spelling:
    """Respells the arguments of calls for one subnet, into the graph that is being built."""

    def __init__(self, source: Graph, keep: Keep, graph: fx.Graph) -> None:
        self.source, self.keep, self.graph = source, keep, graph
        self._batch: fx.Node | None = None
        self._device: fx.Node | None = None
        self._has_batch = Fold(lambda leaf: isinstance(leaf, Dim) and leaf.batch, any, any)

    def literals(self, node: fx.Node) -> dict[str, Any]:
        """New values of the arguments that spell sizes."""
        bound = bind_arguments(node)
        return {
            name: self._literal(node, bound[name], expr)
            for name, expr in self.source.calls[node].literals.items()
        }

    def arguments(self, node: fx.Node) -> dict[str, Any]:
        """All arguments by name, literals respelled."""
        return bind_arguments(node) | self.literals(node)

    def call(self, node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments as the call gave them, literals respelled; defaults stay unsaid where they
        can.
        """
        new, bound = self.literals(node), bind_arguments(node)
        names = list(bound)[: len(node.args)]
        args = tuple(new.get(name, arg) for name, arg in zip(names, node.args, strict=False))
        said = {n for n in new if n in node.kwargs or new[n] != bound[n]}
        kwargs = dict(node.kwargs) | {n: new[n] for n in said if n not in names}
        return map_aggregate(args, self._placed), map_aggregate(kwargs, self._placed)

    def _literal(self, node: fx.Node, value: Any, expr: Any) -> Any:
        if not isinstance(expr, tuple):
            return self._size(expr) if self._follows_batch(expr) else self.keep.literal(value, expr)
        free = [i for i, e in enumerate(expr) if e is not None and self._follows_batch(e)]
        sizes = [
            v if e is None or i in free else self.keep.literal(v, e)
            for i, (v, e) in enumerate(zip(value, expr, strict=True))
        ]
        if len(free) == 1 and -1 not in value and facts_of(node.target).infers:
            sizes[free[0]] = -1
            return sizes
        for i in free:
            sizes[i] = self._size(expr[i])
        return sizes

    def _follows_batch(self, expr: Any) -> bool:
        return not isinstance(expr, int) and self._has_batch(expr)

    def _size(self, expr: Expr) -> Any:
        """A size that depends on the batch, as nodes."""
        expr = resolve(expr)
        if isinstance(expr, Dim) and expr.batch:
            return self._batch_size()
        if isinstance(expr, Dim | Const):
            return self.keep.size(expr)
        product = isinstance(expr, Product)
        join: Callable[[Any, Any], Any] = operator.mul if product else operator.add
        total, *parts = [self._size(p) for p in (expr.factors if product else expr.parts)]
        for part in parts:
            known = isinstance(total, int) and isinstance(part, int)
            total = join(total, part) if known else self.graph.call_function(join, (total, part))
        return total

    def _placed(self, value: Any) -> Any:
        """The device of the inputs as a node, so that the calls that name it follow them."""
        return self._home() if self.source.capture.is_home(value) else value

    def device_type(self, traced: str) -> Any:
        """A type of devices; where the trace had its inputs there, that of the inputs as a node."""
        home = traced == self.source.capture.device.type
        return self.graph.call_function(getattr, (self._home(), "type")) if home else traced

    def _home(self) -> fx.Node:
        if self._device is None:
            inputs = self.source.capture.graph.find_nodes(op="placeholder")
            name = next(n.name for n in inputs if isinstance(n.meta["val"], torch.Tensor))
            first = next(n for n in self.graph.nodes if n.name == name)
            self._device = self.graph.call_function(getattr, (first, "device"))
        return self._device

    def _batch_size(self) -> fx.Node:
        if self._batch is None:
            batched = self.source.capture.batched
            first = next(n for n in self.graph.nodes if n.name in batched)
            self._batch = self.graph.call_function(torch.ops.aten.sym_size.int, (first, 0))
        return self._batch
