"""Ops of many forms, spelled in the one form that the table has a rule for."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import fx

from nestify.rules.call import bind_arguments, op_name, shape_of

__all__ = ["canonical"]

# Ops that cut a tensor, and the dim that they cut where they have no argument for it.
_SPLITS = {"chunk": 0, "split": 0, "tensor_split": 0, "vsplit": 0, "hsplit": 1, "dsplit": 2}


def canonical(node: fx.Node) -> tuple[Any, Any, Any]:
    """Target, arguments and keyword arguments of a call in the form that the table has."""
    name = op_name(node.target)
    kwargs = dict(node.kwargs)
    if name in _SPLITS or name.startswith("unsafe_"):
        bound = bind_arguments(node)
        rank = len(shape_of(cast(fx.Node, node.args[0])))
        dim = min(bound.get("dim", _SPLITS.get(name, 0)), rank - 1)
        sizes = [int(piece.shape[dim]) for piece in node.meta["val"]]
        return torch.ops.aten.split_with_sizes.default, (bound["self"], sizes, dim), {}
    if name == "squeeze":
        sizes = shape_of(cast(fx.Node, node.args[0]))
        named = bind_arguments(node).get("dim", tuple(range(len(sizes))))
        named = [d % len(sizes) for d in (named if isinstance(named, list | tuple) else [named])]
        ones = [d for d in named if sizes[d] == 1]
        return torch.ops.aten.squeeze.dims, (node.args[0], ones), {}
    if name == "scaled_dot_product_attention" and kwargs.get("scale") is None:
        kwargs["scale"] = 1.0 / math.sqrt(shape_of(cast(fx.Node, node.args[0]))[-1])
    return node.target, node.args, kwargs
