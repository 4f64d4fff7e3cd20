"""BatchNorm statistics of one subnet, re-estimated from calibration data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import fx

from nestify.capture.source_lines import source_line
from nestify.dims import Expr
from nestify.dims.selection import Keep
from nestify.errors import UsageError

__all__ = ["NO_BATCH", "BatchStatistics", "CallStatistics", "NormCall"]


NO_BATCH = "calibrate= holds no batch; pass at least one batch of inputs"
_Kind = tuple[torch.dtype, torch.device]


class NormCall(NamedTuple):
    """A call of a BatchNorm whose statistics are estimated: its module, its channels, and the names
    of its running mean and variance.
    """

    path: str
    channels: Expr
    mean: str
    var: str


class CallStatistics(NamedTuple):
    """Mean and variance of one batch at one call of a BatchNorm, as two rows."""

    node: fx.Node
    rows: torch.Tensor


class BatchStatistics:
    """Averages statistics as :func:`reestimate_batch_norm` does, in passes over a captured graph.

    ``norms`` are the calls that have statistics to estimate. ``calls`` are to run in their place;
    ``batch`` holds what they found in the batch at hand. All batches are of the subnet that
    ``keep`` describes.
    """

    def __init__(self, norms: Mapping[fx.Node, NormCall], keep: Keep) -> None:
        self._norms, self._keep = norms, keep
        self.calls: dict[fx.Node, Callable[[list[Any]], torch.Tensor]] = {
            node: partial(self._norm, node) for node in norms
        }
        self.batch: list[CallStatistics] = []
        self.batches = 0
        self._memory: dict[_Kind, torch.Tensor] = {}  # what is left of it for this batch
        self._averages: dict[_Kind, tuple[list[CallStatistics], torch.Tensor]] = {}

    def _norm(self, node: fx.Node, args: list[Any]) -> torch.Tensor:
        x, weight, bias, mean, _, _, _, eps, cudnn = args
        if x.numel() == x.shape[1]:
            line = source_line(node)
            where = f"{self._norms[node].path!r}{f' at {line}' if line else ''}"
            raise UsageError(
                f"BatchNorm {where} gets one value a channel in a calibration batch, "
                f"{tuple(x.shape)}, which has no variance; pass larger batches"
            )
        rows = self._zeros((mean.dtype, mean.device), len(mean))
        self.batch.append(CallStatistics(node, rows))
        mean, var = rows.unbind()
        return torch.batch_norm(x, weight, bias, mean, var, True, 1.0, eps, cudnn)

    def _zeros(self, kind: _Kind, channels: int) -> torch.Tensor:
        """Two rows of zeros, in memory that the calls of one kind share from here to the end of a
        batch: whoever keeps them has few places to account for.
        """
        count, memory = 2 * channels, self._memory.get(kind)
        if memory is None:
            done = {node for node, _ in self.batch}
            sizes = (self._keep.size(n.channels) for at, n in self._norms.items() if at not in done)
            memory = torch.zeros(2 * sum(sizes), dtype=kind[0], device=kind[1])
        self._memory[kind] = memory[count:]
        return memory[:count].view(2, -1)

    def close_batch(self) -> None:
        """Add the statistics of a batch to the averages, those of one kind in a row."""
        self.batches += 1
        calls: dict[_Kind, list[CallStatistics]] = {}
        for moments in self.batch:
            calls.setdefault((moments.rows.dtype, moments.rows.device), []).append(moments)
        for kind, mine in calls.items():
            found = torch.cat([rows.flatten() for _, rows in mine])
            if self.batches == 1:
                self._averages[kind] = mine, found
            else:
                self._averages[kind][1].lerp_(found, 1.0 / self.batches)
        self.batch, self._memory = [], {}

    def averages_of_batches(self) -> dict[str, torch.Tensor]:
        """The averages by the names of the buffers; all calls that write into one count the same.

        Raises:
            UsageError: there was no batch.
        """
        if not self.batches:
            raise UsageError(NO_BATCH)
        found: dict[str, list[torch.Tensor]] = {}
        for calls, average in self._averages.values():
            pieces = average.split([rows.numel() for _, rows in calls])
            for (node, _), piece in zip(calls, pieces, strict=True):
                mean, var = piece.view(2, -1).unbind()
                found.setdefault(self._norms[node].mean, []).append(mean)
                found.setdefault(self._norms[node].var, []).append(var)
        return {
            name: torch.stack(calls).mean(0) if len(calls) > 1 else calls[0]
            for name, calls in found.items()
        }
