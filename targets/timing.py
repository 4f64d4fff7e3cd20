"""Timing a forward pass in torch eager, on the device that a target names."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils.benchmark import Timer

__all__ = ["median_latency"]

_MIN_RUN_TIME_S = 0.2


def median_latency(
    model: nn.Module,
    example_inputs: Sequence[Any],
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    device: str,
) -> float:
    """Return the median latency in milliseconds of ``model(*example_inputs, **example_kwargs)``.

    Example:
        >>> median_latency(nn.Linear(8, 8), (torch.randn(1, 8),), device="cpu") > 0
        True

    Args:
        model: what is timed, a copy of it where it lies on another device; its mode is left as it
            is, so call ``eval()`` first.
        example_inputs: the positional inputs; their batch size is the one timed.
        example_kwargs: the keyword inputs.
        device: ``cpu`` or ``cuda``. On a GPU a pass ends when there is nothing left to do.

    Returns:
        The median over blocks of runs that fill at least 0.2 s, in inference mode, by one thread.
    """
    args, kwargs = pytree.tree_map_only(
        torch.Tensor, lambda t: t.to(device), (tuple(example_inputs), dict(example_kwargs or {}))
    )
    if any(t.device.type != device for t in chain(model.parameters(), model.buffers())):
        model = copy.deepcopy(model).to(device)
    timer = Timer(
        stmt="model(*args, **kwargs)" + ("; wait()" if device == "cuda" else ""),
        globals={"model": model, "args": args, "kwargs": kwargs, "wait": torch.cuda.synchronize},
        num_threads=1,
    )
    with torch.inference_mode():
        return timer.blocked_autorange(min_run_time=_MIN_RUN_TIME_S).median * 1e3
