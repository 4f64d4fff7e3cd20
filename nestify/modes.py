"""Train and eval: a model traced in eval keeps traces of what it does in training only."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

__all__ = ["eval_mode", "stochastic_markers"]


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _register_marker() -> None:
    if hasattr(torch.ops.nestify, "stochastic"):
        return

    @torch.library.custom_op("nestify::stochastic", mutates_args=())
    def stochastic(x: torch.Tensor, path: str) -> torch.Tensor:
        return x.clone()

    stochastic.register_fake(lambda x, path: torch.empty_like(x))


def _is_stochastic(module: nn.Module) -> bool:
    """A leaf without state whose forward asks for the mode: it may act in training alone."""
    code = getattr(type(module).forward, "__code__", None)
    stateless = not (module._parameters or module._buffers or module._modules)
    return stateless and code is not None and "training" in code.co_names


@contextlib.contextmanager
def stochastic_markers(model: nn.Module) -> Iterator[None]:
    """Let modules that are the identity in eval but not in training leave a marker in the graph."""
    _register_marker()
    patched: list[nn.Module] = []

    def patch(path: str, module: nn.Module) -> None:
        original = module.forward

        def forward(x: Any, *args: Any, **kwargs: Any) -> Any:
            out = original(x, *args, **kwargs)
            if out is x and isinstance(x, torch.Tensor) and not args and not kwargs:
                return torch.ops.nestify.stochastic(x, path)
            return out

        module.forward = forward
        patched.append(module)

    try:
        for path, module in model.named_modules():
            if path and _is_stochastic(module):
                patch(path, module)
        yield
    finally:
        for module in patched:
            del module.forward
