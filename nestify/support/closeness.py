"""How far two networks' outputs lie apart."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree

__all__ = ["LIMITS", "relative_distance", "relative_error"]

# Two orders of adding up the same numbers differ by less than this, relative to the largest output.
LIMITS = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def relative_error(a: Any, b: Any) -> float:
    """Largest difference between two equal pytrees of tensors, relative to the largest value of
    ``a``.

    >>> relative_error(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5]))
    0.25
    """
    left, right = (
        [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
        for tree in (a, b)
    )
    if [x.shape for x in left] != [y.shape for y in right]:
        return float("inf")
    return max((_error(x, y) for x, y in zip(left, right, strict=True)), default=0.0)


def relative_distance(a: Any, b: Any) -> float:
    """The 2-norm of the difference of two equal pytrees of tensors, relative to that of ``a``.

    >>> relative_distance([torch.tensor([3.0]), torch.tensor([4.0])], [torch.zeros(1)] * 2)
    1.0
    """
    trees = (pytree.tree_leaves(tree) for tree in (a, b))
    left, right = ([_real(x) for x in leaves if isinstance(x, torch.Tensor)] for leaves in trees)
    apart = sum(float((x - y).square().sum()) for x, y in zip(left, right, strict=True))
    size = sum(float(x.square().sum()) for x in left)
    return (apart / max(size, 1e-300)) ** 0.5


def _error(a: torch.Tensor, b: torch.Tensor) -> float:
    """The same infinity, or NaN in both, is no difference."""
    x, y = _real(a), _real(b)
    finite = x[x.isfinite()].abs()
    scale = max(float(finite.max()), 1e-30) if finite.numel() else 1.0
    apart = (x - y).abs()[~((x == y) | (x.isnan() & y.isnan()))]
    if not apart.numel():
        return 0.0
    return float(apart.nan_to_num(nan=float("inf"), posinf=float("inf")).max()) / scale


def _real(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).double()
