"""This machine's CPU, running torch eager: latency is measured, never predicted.

The batch is the one given. One thread runs: of all settings it is the one that depends least on
what else the machine does, and it means the same on a machine with more cores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from nestify.targets.target import Target
from nestify.targets.timing import median_latency


def measure(
    model: nn.Module, example_inputs: Sequence[Any], example_kwargs: Mapping[str, Any] | None = None
) -> float:
    """Return the median latency in milliseconds of ``model(*example_inputs, **example_kwargs)``.

    Example:
        >>> measure(nn.Linear(8, 8), (torch.randn(1, 8),)) > 0
        True

    Args:
        model: what is timed, a copy of it where it lies on another device; its mode is left as it
            is, so call ``eval()`` first.
        example_inputs: the positional inputs; their batch size is the one timed.
        example_kwargs: the keyword inputs.

    Returns:
        The median over blocks of runs that fill at least 0.2 s, in inference mode.
    """
    return median_latency(model, example_inputs, example_kwargs, torch.device("cpu"))


CPU = Target(
    name="cpu",
    description=(
        "this machine's CPU, torch eager: the median of timed runs, one thread, batch as given"
    ),
    step=1,
    measure=measure,
)
