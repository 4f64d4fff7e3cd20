"""This machine's CPU, running torch eager: latency is measured, never predicted.

The batch is the one given. One thread runs: of all settings it is the one that depends least on
what else the machine does, and it means the same on a machine with more cores.
"""

from __future__ import annotations

from functools import partial

from nestify.targets.target import Target
from nestify.targets.timing import median_latency

CPU = Target(
    name="cpu",
    description=(
        "this machine's CPU, torch eager: the median of timed runs, one thread, batch as given"
    ),
    step=1,
    measure=partial(median_latency, device="cpu"),
)
