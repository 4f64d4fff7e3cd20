"""When two right answers may differ: rounding at a jump, and the order of equal values."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from nestify.compare import relative_error
from nestify.rules import op_name

__all__ = ["orders_equal_values", "sensitivity"]

# Ops whose result says which of several values came first, or where.
_ORDERS = ("topk", "sort", "argsort", "argmax", "argmin", "median", "max", "min", "kthvalue")
_POOLS = ("adaptive_max_pool", "with_indices")


def sensitivity(model: nn.Module, inputs: tuple[torch.Tensor, ...], tiny: float) -> float:
    """How far changes of ``tiny``, relative, in inputs and parameters move the outputs."""
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    with torch.no_grad():
        expected = model(*inputs)
        for _ in range(3):
            twin = copy.deepcopy(model)
            for tensor in (*twin.parameters(), *twin.buffers()):
                if tensor.is_floating_point():
                    tensor.copy_(_moved(tensor, tiny, generator))
            moved = [_moved(x, tiny, generator) for x in inputs]
            worst = max(worst, relative_error(expected, twin(*moved)))
    return worst


def _moved(tensor: torch.Tensor, tiny: float, generator: torch.Generator) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor
    noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
    return tensor * (1 + tiny * noise)


def orders_equal_values(module: fx.GraphModule, inputs: tuple[torch.Tensor, ...]) -> bool:
    """Whether a sort, a maximum or the like meets values that are equal up to rounding.

    Which of them comes first is up to each runtime.
    """
    watcher = _Watcher(module)
    with torch.no_grad():
        watcher.run(*inputs)
    return watcher.found


class _Watcher(fx.Interpreter):
    found = False

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        name = op_name(target)
        if name in _ORDERS or any(part in name for part in _POOLS):
            for tensor in pytree.tree_leaves((args, kwargs)):
                if isinstance(tensor, torch.Tensor) and tensor.numel() > 1:
                    self.found |= _has_ties(tensor)
        return super().call_function(target, args, kwargs)


def _has_ties(tensor: torch.Tensor) -> bool:
    values = tensor.double().flatten().sort().values
    return bool((values.diff() <= 1e-6 * values.abs().max()).any())
