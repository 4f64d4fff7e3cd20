"""How far two networks' outputs lie apart."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree

__all__ = ["relative_error"]


def relative_error(a: Any, b: Any) -> float:
    """Largest difference between two equal pytrees of tensors, relative to the largest value of ``a``.

    >>> relative_error(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5]))
    0.25
    """
    worst = 0.0
    left, right = (pytree.tree_leaves(x) for x in (a, b))
    if len(left) != len(right):
        return float("inf")
    for x, y in zip(left, right, strict=True):
        if not isinstance(x, torch.Tensor):
            continue
        if x.shape != y.shape:
            return float("inf")
        if x.numel() == 0:
            continue
        x, y = x.detach().double(), y.detach().double()
        scale = max(float(x.abs().max()), 1e-30)
        error = float((x - y).abs().max()) / scale
        worst = max(worst, error if error == error else float("inf"))
    return worst
