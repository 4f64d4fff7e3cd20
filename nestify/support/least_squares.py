"""Least squares for one layer: weights whose outputs follow a target, from rows that are not kept.

The fit is a correction of given weights, damped towards them (ridge): where they are right already,
or where the rows say nothing, they stay as they are.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["MOST_INPUTS", "RIDGE", "Fit", "unexplained"]

RIDGE = 1e-4  # of the mean square of the rows: they are samples, and fewer than one would like
_CHUNK = 1 << 23  # numbers that are taken in at once: 64 MiB
MOST_INPUTS = 8192  # of a filter: the moments of more would take over 0.5 GiB


class _Sums(NamedTuple):
    """Of ``number`` rows and what their outputs lack: means, and products around these."""

    number: int
    row: Tensor
    lack: Tensor
    rows: Tensor
    cross: Tensor
    lacks: Tensor

    def merged(self, other: _Sums) -> _Sums:
        """Those of both, shifted to their common means."""
        total = self.number + other.number
        share, weight = other.number / total, self.number * other.number / total
        row, lack = other.row - self.row, other.lack - self.lack
        return _Sums(
            total,
            self.row + row * share,
            self.lack + lack * share,
            self.rows + other.rows + weight * row[..., :, None] * row[..., None, :],
            self.cross + other.cross + weight * row[..., :, None] * lack[..., None, :],
            self.lacks + other.lacks + weight * lack.square(),
        )


class Fit:
    """Corrects ``weight`` (..., outputs, inputs) and ``bias``, if there is one, in float64.

    Layers of one size may lie in the dims ahead.

    >>> x, target = torch.randn(100, 3), torch.randn(2, 3)
    >>> fit = Fit(torch.zeros(2, 3), None)
    >>> fit.add(x, x @ target.T)
    >>> weight, bias = fit.solve()
    >>> torch.allclose(weight.float(), target, atol=1e-2), bias
    (True, None)
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = weight.double()
        self.bias = None if bias is None else bias.double()
        self._sums: _Sums | None = None

    @property
    def count(self) -> int:
        """How many rows there were."""
        return 0 if self._sums is None else self._sums.number

    def add(self, rows: Tensor, target: Tensor) -> None:
        """Take in rows (..., samples, inputs) and what the outputs should be (..., samples,
        outputs).
        """
        most = max(1, _CHUNK // max(1, rows[..., 0, :].numel())) if rows.shape[-2] else 1
        for some, wanted in zip(rows.split(most, -2), target.split(most, -2), strict=True):
            if some.shape[-2]:
                self._add(some.double(), wanted.double())

    def _add(self, rows: Tensor, target: Tensor) -> None:
        lacks = target - rows @ self.weight.mT
        if self.bias is not None:
            lacks = lacks - self.bias[..., None, :]
        row, lack = rows.mean(-2), lacks.mean(-2)
        rows, lacks = rows - row[..., None, :], lacks - lack[..., None, :]
        sums = _Sums(
            rows.shape[-2], row, lack, rows.mT @ rows, rows.mT @ lacks, lacks.square().sum(-2)
        )
        self._sums = sums if self._sums is None else self._sums.merged(sums)

    def merge(self, other: Fit) -> None:
        """Take in the rows that ``other``, of the same weights, was given."""
        if other._sums is not None:
            self._sums = other._sums if self._sums is None else self._sums.merged(other._sums)

    def solve(self, ridge: float = RIDGE) -> tuple[Tensor, Tensor | None]:
        """The corrected weight and bias; as they were where there were no rows."""
        sums = self._sums
        if sums is None:
            return self.weight, self.bias
        square, cross = sums.rows / sums.number, sums.cross / sums.number
        if self.bias is None:  # the line must pass through the origin
            square = square + sums.row[..., :, None] * sums.row[..., None, :]
            cross = cross + sums.row[..., :, None] * sums.lack[..., None, :]
        correction = _solved(square, cross, ridge).mT
        bias = self.bias
        if bias is not None:
            bias = bias + sums.lack - (correction @ sums.row[..., None])[..., 0]
        return self.weight + correction, bias

    def error(self, weight: Tensor, bias: Tensor | None) -> float:
        """The mean square by which the outputs of these weights miss the target, summed over all
        outputs.
        """
        sums = self._sums
        if sums is None:
            return 0.0
        correction = weight - self.weight
        apart = ((correction @ sums.rows) * correction).sum() - 2 * (
            correction.mT * sums.cross
        ).sum()
        lack = sums.lack - (correction @ sums.row[..., None])[..., 0]
        if bias is not None and self.bias is not None:
            lack = lack - (bias - self.bias)
        return float(((sums.lacks.sum() + apart) / sums.number).clamp_min(0) + lack.square().sum())


def unexplained(second: Tensor, weight: Tensor, inputs: Tensor) -> float:
    """The energy of ``weight`` @ rows that weights on some of the ``inputs`` alone cannot follow.

    ``second`` is the second moment of the rows (or their covariance, where there is a bias). As in
    :class:`Fit` the weights on those inputs stay, and are corrected for the loss of the others.
    """
    lost = weight.clone()
    lost[:, inputs] = 0.0
    square = second[inputs][:, inputs]
    cross = second[inputs] @ lost.T
    correction = _solved(square, cross, RIDGE)
    made = (correction * cross).sum() * 2 - ((square @ correction) * correction).sum()
    return max(0.0, float(((lost @ second) * lost).sum() - made))


def _solved(square: Tensor, cross: Tensor, ridge: float) -> Tensor:
    """The X of (``square`` + ridge) X = ``cross``; the matrix is symmetric and not negative."""
    added = (ridge * square.diagonal(dim1=-2, dim2=-1).mean(-1)).clamp_min(1e-30)
    damped = square.clone()
    damped.diagonal(dim1=-2, dim2=-1).add_(added[..., None])
    factor, failed = torch.linalg.cholesky_ex(damped)
    if failed.any():  # values that are not finite, or that rounding has made negative
        return torch.linalg.solve(damped, cross)
    return torch.cholesky_solve(cross, factor)
