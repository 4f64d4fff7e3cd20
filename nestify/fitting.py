"""Least squares for one layer: weights whose outputs follow a target, from rows that are not kept.

The fit is a correction of given weights, damped towards them (ridge): where they are right already,
or where the rows say nothing, they stay as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nestify.moments import Moments

__all__ = ["RIDGE", "Fit", "unexplained"]

RIDGE = 1e-4  # of the mean square of the rows: they are samples, and fewer than one would like


class Fit:
    """Corrects ``weight`` (..., outputs, inputs) and ``bias``, if there is one, in float64.

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
        self.moments = Moments()

    def add(self, rows: Tensor, target: Tensor) -> None:
        """Take in rows (..., samples, inputs) and what the outputs should be (..., samples,
        outputs).
        """
        rows = rows.double()
        made = rows @ self.weight.mT
        if self.bias is not None:
            made = made + self.bias[..., None, :]
        self.moments.add(torch.cat([rows, target.double() - made], -1))

    def solve(self, ridge: float = RIDGE) -> tuple[Tensor, Tensor | None]:
        """The corrected weight and bias."""
        inputs = self.weight.shape[-1]
        # Without a bias the line must pass through the origin.
        second = self.moments.second if self.bias is None else self.moments.covariance
        square, cross = second[..., :inputs, :inputs], second[..., :inputs, inputs:]
        correction = torch.linalg.solve(_damped(square, ridge), cross).mT
        bias = self.bias
        if bias is not None:
            mean = self.moments.mean
            bias = bias + mean[..., inputs:] - (correction @ mean[..., :inputs, None])[..., 0]
        return self.weight + correction, bias

    def error(self, weight: Tensor, bias: Tensor | None) -> float:
        """The mean square by which the outputs of these weights miss the target, of all outputs in
        sum.
        """
        inputs = self.weight.shape[-1]
        second, mean = self.moments.second, self.moments.mean
        square, cross = second[..., :inputs, :inputs], second[..., :inputs, inputs:]
        correction = weight - self.weight
        missed = second.diagonal(dim1=-2, dim2=-1)[..., inputs:].sum()
        missed = missed - 2 * (correction.mT * cross).sum()
        missed = missed + ((correction @ square) * correction).sum()
        if bias is not None and self.bias is not None:
            shift = bias - self.bias
            left = mean[..., inputs:] - (correction @ mean[..., :inputs, None])[..., 0]
            missed = missed + (shift * (shift - 2 * left)).sum()
        return float(missed)


def unexplained(second: Tensor, weight: Tensor, inputs: Tensor) -> float:
    """The energy of ``weight`` @ rows that weights on some of the ``inputs`` alone cannot follow.

    ``second`` is the second moment of the rows (or their covariance, where there is a bias). As in
    :class:`Fit` the weights on those inputs stay, and are corrected for the loss of the others.
    """
    lost = weight.clone()
    lost[:, inputs] = 0.0
    square = second[inputs][:, inputs]
    cross = second[inputs] @ lost.T
    correction = torch.linalg.solve(_damped(square, RIDGE), cross)
    made = (correction * cross).sum() * 2 - ((square @ correction) * correction).sum()
    return max(0.0, float(((lost @ second) * lost).sum() - made))


def _damped(square: Tensor, ridge: float) -> Tensor:
    added = (ridge * square.diagonal(dim1=-2, dim2=-1).mean(-1)).clamp_min(1e-30)
    return square + torch.diag_embed(added[..., None].expand(square.shape[:-1]))
