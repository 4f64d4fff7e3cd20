"""This machine's CUDA GPU, running torch eager: latency is measured, never predicted.

The batch is the one given, and every pass is waited for: what is timed is how long one caller
waits. A pass of many small calls takes as long as the host needs to launch them, so that narrower
layers save nothing there; batches that fill the GPU show what they save.
"""

from __future__ import annotations

from functools import partial

import torch

from nestify.targets.target import Target
from nestify.targets.timing import median_latency


def lacks() -> str:
    """Say what this machine lacks to measure.

    Example:
        >>> lacks() in ("", "torch sees no CUDA device")
        True
    """
    return "" if torch.cuda.is_available() else "torch sees no CUDA device"


CUDA = Target(
    name="cuda",
    description=(
        "this machine's CUDA GPU, torch eager: the median of timed runs, each waited for, "
        "batch as given"
    ),
    step=8,
    measure=partial(median_latency, device="cuda"),
    lacks=lacks,
)
