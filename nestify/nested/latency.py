"""Latencies of subnets, each extracted and timed on a target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from nestify.errors import UsageError

__all__ = ["measured_latencies"]


def measured_latencies(
    extract: Callable[[Mapping[str, int]], nn.Module],
    subnets: Sequence[Mapping[str, int]] | Mapping[str, Any],
    target: str,
    call: tuple[Sequence[Any], Mapping[str, Any]],
) -> NDArray[np.float64]:
    """The latency in milliseconds of each subnet on ``target``, on the inputs of ``call``.

    Raises:
        UsageError: an unknown target; columns of sizes, which stand for too many to be timed.
    """
    from nestify.targets import usable_target

    if isinstance(subnets, Mapping):
        raise UsageError("latency is measured subnet by subnet: pass a list of subnets")
    device = usable_target(target)
    return np.array([device.measure(extract(subnet), *call) for subnet in subnets])
