"""Least squares for one layer: weights whose outputs follow a target, from rows that are not kept.

The fit is a correction of given weights, damped towards them (ridge): where they are right already,
or where the rows say nothing, they stay as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nestify.moments import Moments

__all__ = ["Fit", "unexplained"]

_RIDGE = 1e-4  # of the mean square of the rows: they are samples, and fewer than one would like


class Fit:
    """Corrects ``weight`` (outputs, inputs) and ``bias``, if there is one, in float64.

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
        self._moments = Moments()

    def add(self, rows: Tensor, target: Tensor) -> None:
        """Take in rows (samples, inputs) and what the outputs should be (samples, outputs)."""
        rows = rows.double()
        made = rows @ self.weight.T + (0.0 if self.bias is None else self.bias)
        self._moments.add(torch.cat([rows, target.double() - made], 1))

    def solve(self) -> tuple[Tensor, Tensor | None]:
        """The corrected weight and bias."""
        inputs = self.weight.shape[1]
        second, mean = self._moments.covariance, self._moments.mean
        if self.bias is None:  # the line must pass through the origin
            second = second + torch.outer(mean, mean)
        square, cross = second[:inputs, :inputs], second[:inputs, inputs:]
        correction = torch.linalg.solve(_damped(square), cross).T
        bias = self.bias
        if bias is not None:
            bias = bias + mean[inputs:] - correction @ mean[:inputs]
        return self.weight + correction, bias


def unexplained(second: Tensor, weight: Tensor, inputs: Tensor) -> float:
    """The energy of ``weight`` @ rows that weights on some of the ``inputs`` alone cannot follow.

    ``second`` is the second moment of the rows (or their covariance, where there is a bias). As in
    :class:`Fit` the weights on those inputs stay, and are corrected for the loss of the others.
    """
    lost = weight.clone()
    lost[:, inputs] = 0.0
    square = second[inputs][:, inputs]
    cross = second[inputs] @ lost.T
    correction = torch.linalg.solve(_damped(square), cross)
    made = (correction * cross).sum() * 2 - ((square @ correction) * correction).sum()
    return max(0.0, float(((lost @ second) * lost).sum() - made))


def _damped(square: Tensor) -> Tensor:
    ridge = max(_RIDGE * float(square.diagonal().mean()), 1e-30)
    return square + ridge * torch.eye(len(square), dtype=square.dtype, device=square.device)
