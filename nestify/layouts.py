"""Maps with their channels last, where convolutions are cheaper so, and the calls that need others.

oneDNN turns other maps into a layout of its own and back around every convolution, which costs the
more the narrower the layers are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from nestify.rules import ORDERED, is_mutable, op_name

__all__ = ["channels_last", "contiguous", "is_contiguous_map", "reads_in_order", "run_in_order"]


def is_contiguous_map(value: Any) -> bool:
    """Whether this is a map on a CPU that would be turned."""
    return (
        isinstance(value, torch.Tensor)
        and value.ndim == 4
        and value.device.type == "cpu"
        and value.is_contiguous()
    )


def channels_last(value: Any) -> Any:
    """A map with its channels last; what is no map as it is."""
    return value.contiguous(memory_format=torch.channels_last) if _is_map(value) else value


def contiguous(value: Any) -> Any:
    """A map with its channels first again; what is no map as it is."""
    return value.contiguous() if _is_map(value) else value


def _is_map(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim == 4


def reads_in_order(node: fx.Node) -> bool:
    """Whether a call gives something else, or refuses, where channels lie last."""
    return op_name(node.target) in ORDERED


def run_in_order(
    node: fx.Node, run: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """Run a call on its maps with their channels first; what it writes ends up where it should."""
    laid = [contiguous(arg) for arg in args]
    found = run(*laid, **{name: contiguous(arg) for name, arg in kwargs.items()})
    if not is_mutable(node):
        return found
    return args[0] if laid[0] is args[0] else args[0].copy_(laid[0])
