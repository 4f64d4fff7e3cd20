"""One step of training of two modules: outputs, gradients and buffers, compared by name."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils import _pytree as pytree

from nestify.support.closeness import relative_error

__all__ = ["Trained", "apart", "trained"]

Named = Mapping[str, torch.Tensor]


class Trained(NamedTuple):
    """What a step gives, the gradients that it leaves, and the buffers after it."""

    outputs: Any
    gradients: Named
    buffers: Named


def trained(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Trained:
    """Run forward and backward in training, from a fixed random state; ``module`` is left as it
    was, in eval.
    """
    state = [
        (tensor, tensor.detach().clone()) for tensor in (*module.buffers(), *module.parameters())
    ]
    given = pytree.tree_map_only(torch.Tensor, torch.clone, (args, dict(kwargs)))
    module.train()
    module.zero_grad(set_to_none=True)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            outputs = module(*given[0], **given[1])
        leaves = [t for t in pytree.tree_leaves(outputs) if isinstance(t, torch.Tensor)]
        reals = [torch.view_as_real(t) if t.is_complex() else t for t in leaves if t.requires_grad]
        if reals:
            torch.stack([t.double().square().mean() for t in reals]).sum().backward()
        gradients = {
            name: torch.zeros_like(p) if p.grad is None else p.grad.detach().clone()
            for name, p in module.named_parameters(remove_duplicate=False)
        }
        buffers = {name: t.detach().clone() for name, t in module.named_buffers()}
        detached = pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, outputs)
        return Trained(copy.deepcopy(detached), gradients, buffers)
    finally:
        module.zero_grad(set_to_none=True)
        with torch.no_grad():
            for tensor, value in state:
                tensor.copy_(value)
        module.eval()


def apart(original: Trained, other: Trained) -> tuple[str, float]:
    """Where ``other`` differs the most from ``original``, and by how much, relative to the largest
    value there.

    >>> step = trained(nn.Linear(2, 2), (torch.ones(1, 2),), {})
    >>> apart(step, step)
    ('outputs', 0.0)
    """
    if pytree.tree_structure(original.outputs) != pytree.tree_structure(other.outputs):
        return "the structure of the outputs", float("inf")
    if _dtypes(original.outputs) != _dtypes(other.outputs):
        return "the dtypes of the outputs", float("inf")
    found = {"outputs": relative_error(original.outputs, other.outputs)}
    for kind, mine, theirs in (
        ("gradients", original.gradients, other.gradients),
        ("buffers", original.buffers, other.buffers),
    ):
        names = [name for name in mine if name in theirs]
        largest = max((_largest(mine[n], torch.zeros_like(mine[n])) for n in names), default=0.0)
        for name in names:
            difference = _largest(mine[name], theirs[name]) / max(largest, 1e-30)
            found[f"{kind} of {name}"] = difference
    worst = max(found, key=lambda where: found[where])
    return worst, found[worst]


def _dtypes(outputs: Any) -> list[torch.dtype]:
    return [t.dtype for t in pytree.tree_leaves(outputs) if isinstance(t, torch.Tensor)]


def _largest(a: torch.Tensor, b: torch.Tensor) -> float:
    if a.shape != b.shape:
        return float("inf")
    x, y = (torch.view_as_real(t).double() if t.is_complex() else t.double() for t in (a, b))
    values = (x - y).abs()[~((x == y) | (x.isnan() & y.isnan()))]
    return float(values.nan_to_num(nan=float("inf")).max()) if values.numel() else 0.0
