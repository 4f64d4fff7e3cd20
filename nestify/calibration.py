"""BatchNorm statistics of one subnet, re-estimated from calibration data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from nestify.errors import UsageError

__all__ = ["inputs_of", "reestimate_batch_norm"]

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def inputs_of(batch: Any) -> tuple[Any, ...]:
    """The model inputs of a batch: a tensor, or the first item of (inputs, labels)."""
    first = batch[0] if isinstance(batch, list | tuple) else batch
    return tuple(first) if isinstance(first, list | tuple) else (first,)


def reestimate_batch_norm(model: nn.Module, batches: Iterable[Any]) -> int:
    """Average every BatchNorm's running statistics over ``batches``; returns how many there were.

    All batches weigh the same (momentum None); the model is left in eval mode. Weights that were
    trained at many widths at once need this for each width (FN3 claims otherwise; without it small
    nets lose accuracy).

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    >>> reestimate_batch_norm(net, [torch.randn(8, 3, 5, 5)])
    1

    Raises:
        UsageError: ``batches`` is empty.
    """
    norms = [m for m in model.modules() if isinstance(m, _NORMS) and m.running_mean is not None]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    model.eval()
    for norm in norms:
        if norm.num_batches_tracked is None:  # a cumulative average needs a count
            norm.num_batches_tracked = torch.tensor(0)
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    count = 0
    try:
        with torch.no_grad():
            for batch in batches:
                model(*inputs_of(batch))
                count += 1
    finally:
        for norm, (momentum, counter) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, counter
            norm.eval()
    if not count:
        raise UsageError("calibrate= holds no batch; pass at least one batch of inputs")
    return count
