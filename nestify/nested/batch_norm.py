"""BatchNorm calls of a network, and their statistics for one subnet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import fx, nn

from nestify.capture.batches import call_of
from nestify.emit.module.extract import norm_paths
from nestify.errors import UsageError
from nestify.graph.graph import Graph
from nestify.rules import bind_arguments
from nestify.runtime.batch_statistics import NO_BATCH, NormCall
from nestify.support.module_tree import device_of

__all__ = ["norm_calls", "reestimate_batch_norm"]

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def norm_calls(graph: Graph) -> Mapping[fx.Node, NormCall]:
    """The batch norm calls whose statistics an extracted network estimates."""
    found: dict[fx.Node, NormCall] = {}
    for node, path in norm_paths(graph).items():
        bound = bind_arguments(node)
        mean, var = str(bound["running_mean"].target), str(bound["running_var"].target)
        found[node] = NormCall(path, graph.tensor_dims[mean][0], mean, var)
    return found


def reestimate_batch_norm(
    model: nn.Module, batches: Iterable[Any], keywords: Iterable[str] = ()
) -> int:
    """Average every BatchNorm's running statistics over ``batches``; returns how many there were.

    All batches weigh the same (momentum None); the model is left in eval mode. Weights that were
    trained at many widths at once need this for each width (FN3 claims otherwise; without it small
    nets lose accuracy). ``keywords`` names the inputs that the model takes by keyword, which
    batches hold as for :func:`call_of`.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    >>> reestimate_batch_norm(net, [torch.randn(8, 3, 5, 5)])
    1

    Raises:
        UsageError: ``batches`` is empty, or lacks those inputs.
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
    count, device, names = 0, device_of(model), list(keywords)
    try:
        with torch.no_grad():
            for batch in batches:
                args, kwargs = call_of(batch, device, names)
                model(*args, **kwargs)
                count += 1
    finally:
        for norm, (momentum, counter) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, counter
            norm.eval()
    if not count:
        raise UsageError(NO_BATCH)
    return count
