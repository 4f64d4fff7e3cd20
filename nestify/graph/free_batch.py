"""Whether the batch is free: what has the batch size of the example baked in fixes it, and why."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx
from torch.utils import _pytree as pytree

from nestify.capture.batch_diff import BatchArguments
from nestify.dims import Concat, Dim, Expr, Product, Reason, dims_of, fix, resolve
from nestify.rules import Call, Dims

__all__ = ["Batch"]


@dataclass(frozen=True, slots=True)
class Batch:
    """The batch dim of an analysed graph, with what the analysis and a second trace say of it."""

    dim: Dim
    traced: BatchArguments
    calls: Mapping[fx.Node, Call]
    dims: Mapping[fx.Node, Any]
    tensor_dims: Mapping[str, Dims]

    def check(self) -> None:
        """Fix the dim where another batch would be computed wrongly."""
        self._in_tensors()
        self._in_numbers()
        self._in_sizes()

    def _fix(self, why: Reason) -> None:
        fix(self.dim, why)

    def _in_tensors(self) -> None:
        """A parameter or buffer that meets the batch dim has the batch size baked in."""
        for name, dims in self.tensor_dims.items():
            for expr in dims:
                for dim in list(dims_of(expr)):
                    if dim.batch:
                        text = f"{name} is as long as the example's batch"
                        fix(dim, Reason(name, "get_attr", text, "batch"))

    def _in_numbers(self) -> None:
        """A number worked out from the batch size is baked in, unless a rule spells it."""
        found = self.traced
        calls = {node.name: call for node, call in self.calls.items()}
        for (name, argument), other in found.values.items():
            call = calls[name]
            value = call.args[argument]
            if not _spelled(call.literals.get(argument), value, other):
                text = f"computes with {value!r}, which is {other!r} with one sample more"
                self._fix(call.why(text)._replace(kind="batch"))
        if found.elsewhere:
            self._fix(Reason(found.elsewhere, "call", "is made at one batch size only", "batch"))
        if found.refused:
            self._fix(Reason("", "input", found.refused, "batch"))

    def _in_sizes(self) -> None:
        """A number in the code that happens to be the batch size stays where the batch grows."""
        if not any(dim.batch for dim in dims_of(self.dim)):
            return
        for node, call in self.calls.items():
            theirs = self.traced.sizes.get(node.name)
            exprs: list[Expr | None] = pytree.tree_leaves(self.dims[node])
            if theirs is None or any(expr is None for expr in exprs):
                continue
            mine = tuple(_with_one_more(expr) for expr in exprs if expr is not None)
            if mine != theirs:
                pairs = zip(theirs, mine, strict=False)
                given, wanted = next((p for p in pairs if p[0] != p[1]), (len(theirs), len(mine)))
                text = f"gives a size of {given} with one sample more, where {wanted} was expected"
                self._fix(call.why(text)._replace(kind="batch"))
                return


def _with_one_more(expr: Expr) -> int:
    """The size of an expression where the batch has one sample more."""
    top = resolve(expr)
    if isinstance(top, Product):
        return math.prod(map(_with_one_more, top.factors))
    if isinstance(top, Concat):
        return sum(map(_with_one_more, top.parts))
    return top.size + (isinstance(top, Dim) and top.batch)


def _spelled(literal: Any, value: Any, other: Any) -> bool:
    """Whether what differs between two batch sizes is a size that a rule explains."""
    if isinstance(literal, tuple):
        pairs = zip(literal, value, other, strict=False)
        return all(expr is not None or mine == theirs for expr, mine, theirs in pairs)
    return literal is not None and not isinstance(literal, int)
