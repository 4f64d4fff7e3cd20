"""Numbers that torch.export leaves symbolic, though constants alone decide them.

``torch.full((n, 1), self.stride[0])`` reads an element of a constant tensor, and a library may
check the sum of its own shapes: the exporter gives each such number a symbol.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import fx
from torch._ops import OpOverload
from torch.utils import _pytree as pytree

from nestify.rules import is_mutable, op_name

__all__ = ["Constants", "is_assertion", "is_symbolic", "only_asserted"]

_SYMBOLS = (torch.SymInt, torch.SymFloat, torch.SymBool)
_READS = ("item", "_local_scalar_dense")


class Constants:
    """What calls give that read constants alone, worked out where a number is asked for.

    ``tensors`` are the constants of an exported program by their placeholders: parameters and
    buffers are none, as their values may change. Show it each call in order by :meth:`see`.
    """

    def __init__(self, tensors: Mapping[fx.Node, torch.Tensor]) -> None:
        self._known: dict[fx.Node, Any] = dict(tensors)
        self._constant: set[fx.Node] = set(tensors)
        self._numbers: dict[Any, int | float | bool] = {}

    def see(self, node: fx.Node) -> None:
        """Note whether constants alone decide what ``node`` gives."""
        decided = all(source in self._constant for source in node.all_input_nodes)
        if is_mutable(node) and decided:
            self._constant.clear()  # other names of that memory are not followed
        elif decided and _is_repeatable(node):
            self._constant.add(node)

    def number(self, node: fx.Node) -> int | float | bool | None:
        """The number that ``node`` gives, or None where it is no number or depends on data."""
        value = node.meta.get("val")
        if isinstance(value, bool | int | float):
            return value
        if not isinstance(value, _SYMBOLS):
            return None
        if op_name(node.target) in _READS:
            source = cast(fx.Node, node.args[0])
            if source not in self._constant:
                return None
            found = self._evaluate(source).item()
            self._numbers[value.node.expr] = found
            return found
        return self._substituted(value)

    def sized(self, value: Any) -> Any:
        """The same fake tensors with their symbolic sizes as numbers, where these are known."""
        return pytree.tree_map_only(torch.Tensor, self._sized, value)

    def _sized(self, tensor: torch.Tensor) -> torch.Tensor:
        if not is_symbolic(tensor):
            return tensor
        shape = [self._substituted(size) for size in tensor.shape]
        strides = [self._substituted(stride) for stride in tensor.stride()]
        if None in shape or None in strides:
            return tensor
        mode = cast(Any, tensor).fake_mode
        with mode:
            return torch.empty_strided(
                cast(Any, shape), cast(Any, strides), dtype=tensor.dtype, device=tensor.device
            )

    def _substituted(self, value: Any) -> Any:
        if not isinstance(value, _SYMBOLS):
            return value
        found = cast(Any, value).node.expr.subs(self._numbers)
        if found.free_symbols:
            return None
        if isinstance(value, torch.SymBool):
            return bool(found)
        return int(found) if isinstance(value, torch.SymInt) else float(found)

    def _evaluate(self, node: fx.Node) -> Any:
        if node not in self._known:
            read = [self._evaluate(source) for source in node.all_input_nodes]
            values = dict(zip(node.all_input_nodes, read, strict=True))
            args, kwargs = (fx.map_arg(a, values.__getitem__) for a in (node.args, node.kwargs))
            with torch.no_grad():
                self._known[node] = cast(Any, node.target)(*args, **cast(Any, kwargs))
        return self._known[node]


def _is_repeatable(node: fx.Node) -> bool:
    """Whether a call gives the same whenever it runs."""
    if not isinstance(node.target, OpOverload):
        return node.op == "call_function"
    return torch.Tag.nondeterministic_seeded not in node.target.tags and not is_mutable(node)


def is_symbolic(value: Any) -> bool:
    """Whether a number or a size among these values is a symbol."""
    leaves = pytree.tree_leaves(value)
    sizes = [n for leaf in leaves for n in getattr(leaf, "shape", (leaf,))]
    return any(isinstance(size, _SYMBOLS) for size in sizes)


def is_assertion(node: fx.Node) -> bool:
    """Whether a call only checks its operands."""
    return op_name(node.target).startswith(("_assert", "sym_constrain_range"))


def only_asserted(graph: fx.Graph) -> set[fx.Node]:
    """The calls that nothing but assertions read."""
    found: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.op == "call_function" and not is_mutable(node):
            read = node.users and all(u in found or is_assertion(u) for u in node.users)
            if read:
                found.add(node)
    return found
