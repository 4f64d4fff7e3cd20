"""When two right answers may differ: rounding at a jump, and the order of equal values."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from nestify.rules import op_name
from nestify.support.closeness import relative_error

__all__ = ["called", "orders_equal_values", "sensitivity", "sensitivity_of_calls"]

# Ops whose result says which of several values came first, or where.
_ORDERS = ("topk", "sort", "argsort", "argmax", "argmin", "median", "max", "min", "kthvalue")
# onnxruntime's kernels for these are as exact as one allows: 7e-8 off near 0 too, which a logarithm
# makes large.
_SHARES = ("sigmoid", "silu", "special_expit")
_POOLS = ("adaptive_max_pool", "with_indices")


def called(model: nn.Module, inputs: Sequence[torch.Tensor]) -> Any:
    """The outputs, in the mode that the model is in."""
    return model(*inputs)


def sensitivity(
    model: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    tiny: float,
    run: Callable[[nn.Module, Sequence[torch.Tensor]], Any] = called,
) -> float:
    """How far changes of ``tiny``, relative, in inputs and parameters move what ``run`` gives."""
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    with torch.no_grad():
        expected = run(copy.deepcopy(model), inputs)
        for _ in range(3):
            twin = copy.deepcopy(model)
            for tensor in (*twin.parameters(), *twin.buffers()):
                if tensor.is_floating_point():
                    tensor.copy_(_moved(tensor, tiny, generator))
            moved = [_moved(x, tiny, generator) for x in inputs]
            worst = max(worst, relative_error(expected, run(twin, moved)))
    return worst


def sensitivity_of_calls(
    module: fx.GraphModule, inputs: tuple[torch.Tensor, ...], tiny: float
) -> float:
    """How far changes of ``tiny`` in the results of all calls, relative to the largest value of
    each, move the outputs: that is how exact another runtime's kernels are.
    """
    worst = 0.0
    with torch.no_grad():
        expected = fx.Interpreter(module).run(*inputs)
        for seed in range(3):
            worst = max(worst, relative_error(expected, _Inexact(module, tiny, seed).run(*inputs)))
    return worst


class _Inexact(fx.Interpreter):
    """Runs a graph with noise in the result of each call."""

    def __init__(self, module: fx.GraphModule, tiny: float, seed: int) -> None:
        super().__init__(module)
        self.tiny, self.noise = tiny, torch.Generator().manual_seed(seed)

    def run_node(self, n: fx.Node) -> Any:
        """The result of a node, moved where a call computes numbers."""
        result = super().run_node(n)
        if n.op not in ("call_function", "call_module"):
            return result
        return self._moved(result, 1.0 if op_name(n.target) in _SHARES else 0.0)

    def _moved(self, result: Any, least: float) -> Any:
        if not isinstance(result, torch.Tensor) or not result.is_floating_point():
            return result
        finite = result[result.isfinite()].abs()
        scale = max(float(finite.max()) if finite.numel() else 0.0, least)
        noise = torch.randn(result.shape, generator=self.noise, dtype=result.dtype)
        return result + self.tiny * scale * noise


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
