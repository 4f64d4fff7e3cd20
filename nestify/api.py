"""The public functions: each a few lines over the stages of the compiler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from nestify.compiling import trace, transform
from nestify.cost import Cost, Pricing

__all__ = ["estimate", "trace", "transform"]


def estimate(
    model: nn.Module,
    example_inputs: tuple[Any, ...] | None = None,
    target: str | None = None,
    convention: str = "torch",
    *,
    example_kwargs: Mapping[str, Any] | None = None,
) -> Cost:
    """Cost of one network for one sample; ``target`` adds the measured ``latency_ms``.

    >>> import torch, nestify
    >>> nestify.estimate(nn.Linear(4, 8), example_inputs=(torch.randn(1, 4),)).macs
    32

    Raises:
        UsageError: an unknown target or convention.
        CaptureError: the model cannot be captured.
    """
    graph = trace(model, example_inputs, example_kwargs)
    costs = Pricing(graph).costs({}, 1, convention)
    if target is None:
        return costs.row(0)
    import numpy as np

    from nestify.targets import usable_target

    latency = usable_target(target).measure(
        model, graph.capture.example_inputs, graph.capture.example_kwargs
    )
    return costs._replace(latency_ms=np.array([latency])).row(0)
