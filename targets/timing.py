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

__all__ = ["MIN_RUN_TIME_S", "median_latency"]

MIN_RUN_TIME_S = 0.2


def median_latency(
    model: nn.Module,
    example_inputs: Sequence[Any],
    example_kwargs: Mapping[str, Any] | None,
    device: torch.device,
) -> float:
    """Return the median latency in milliseconds of a forward pass on ``device``, by one thread.

    What lies elsewhere is copied there first; a pass ends when the device has nothing left to do.
    """
    args, kwargs = pytree.tree_map_only(
        torch.Tensor, lambda t: t.to(device), (tuple(example_inputs), dict(example_kwargs or {}))
    )
    if any(t.device.type != device.type for t in chain(model.parameters(), model.buffers())):
        model = copy.deepcopy(model).to(device)
    timer = Timer(
        stmt="model(*args, **kwargs)" + ("; wait()" if device.type == "cuda" else ""),
        globals={"model": model, "args": args, "kwargs": kwargs, "wait": torch.cuda.synchronize},
        num_threads=1,
    )
    with torch.inference_mode():
        return timer.blocked_autorange(min_run_time=MIN_RUN_TIME_S).median * 1e3
