"""Norms in eval as a part of the convolutions before them, which saves a pass over the maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from nestify.rules import bind_arguments, op_name

__all__ = ["Fold", "folded", "folds_of"]

_TENSORS = ("weight", "bias", "running_mean", "running_var")


class Fold(NamedTuple):
    """A norm that a convolution takes over: its call, the places of its tensors, weight, bias, mean
    and variance, and its eps.
    """

    norm: fx.Node
    tensors: tuple[int | None, ...]
    eps: float


def folds_of(graph: fx.Graph, slots: Mapping[fx.Node, int]) -> dict[fx.Node, Fold]:
    """The norms that read nothing but a convolution that nothing else reads, by the latter."""
    found: dict[fx.Node, Fold] = {}
    for node in graph.nodes:
        if node.op != "call_function" or op_name(node.target) != "batch_norm":
            continue
        bound = bind_arguments(node)
        source, tensors = bound["input"], [bound[name] for name in _TENSORS]
        own = all(t is None or (isinstance(t, fx.Node) and t.op == "get_attr") for t in tensors)
        fits = isinstance(source, fx.Node) and list(source.users) == [node] and _is_plain(source)
        if own and fits and None not in tensors[2:] and not bound["training"]:
            places = tuple(None if tensor is None else slots[tensor] for tensor in tensors)
            found[source] = Fold(node, places, bound["eps"])
    return found


def _is_plain(node: fx.Node) -> bool:
    return node.op == "call_function" and op_name(node.target) == "conv2d" and not node.kwargs


def folded(args: list[Any], fold: Fold, env: list[Any]) -> list[Any]:
    """The arguments of a convolution that gives what the norm behind it would give.

    >>> x, weight, mean, var = (torch.rand(2, 3, 4, 4), torch.rand(5, 3, 1, 1), *torch.rand(2, 5))
    >>> fold = Fold(fx.Graph().placeholder("norm"), (None, None, 0, 1), 0.1)
    >>> norm = nn.functional.batch_norm(torch.conv2d(x, weight), mean, var, eps=0.1)
    >>> torch.allclose(torch.conv2d(*folded([x, weight], fold, [mean, var])), norm, atol=1e-6)
    True
    """
    x, kernel, *others = args
    weight, bias, mean, var = (None if slot is None else env[slot] for slot in fold.tensors)
    assert mean is not None and var is not None, "statistics, which folds_of asks for"
    scale: Tensor = torch.rsqrt(var + fold.eps)
    scale = scale if weight is None else scale * weight
    shift = (others[0] - mean if others and others[0] is not None else -mean) * scale
    shift = shift if bias is None else shift + bias
    return [x, kernel * scale.view(-1, 1, 1, 1), shift, *others[1:]]
