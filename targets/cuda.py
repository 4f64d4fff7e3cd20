"""This machine's CUDA GPU, running torch eager: latency is measured, never predicted.

The batch is the one given, and every pass is waited for: what is timed is how long one caller
waits. A pass of many small calls takes as long as the host needs to launch them, so that narrower
layers save nothing there; batches that fill the GPU show what they save.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from nestify.errors import UsageError
from nestify.targets.target import Target
from nestify.targets.timing import median_latency


def measure(
    model: nn.Module, example_inputs: Sequence[Any], example_kwargs: Mapping[str, Any] | None = None
) -> float:
    """Return the median latency in milliseconds of ``model(*example_inputs, **example_kwargs)``.

    Example:
        >>> measure(nn.Linear(8, 8), (torch.randn(1, 8),)) > 0  # doctest: +SKIP
        True

    Args:
        model: what is timed, a copy of it where it lies on another device; its mode is left as it
            is, so call ``eval()`` first.
        example_inputs: the positional inputs; their batch size is the one timed.
        example_kwargs: the keyword inputs.

    Returns:
        The median over blocks of runs that fill at least 0.2 s, in inference mode.

    Raises:
        UsageError: torch sees no CUDA device.
    """
    if not torch.cuda.is_available():
        raise UsageError("target 'cuda' times on a CUDA GPU, and torch sees none here")
    return median_latency(model, example_inputs, example_kwargs, torch.device("cuda"))


CUDA = Target(
    name="cuda",
    description=(
        "this machine's CUDA GPU, torch eager: the median of timed runs, each waited for, "
        "batch as given"
    ),
    step=8,
    measure=measure,
)
