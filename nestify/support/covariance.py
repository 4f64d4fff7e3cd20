"""Mean and covariance of rows that come in chunks and are not kept, and whitening by them."""

from __future__ import annotations

import torch
from torch import Tensor

from nestify.errors import UsageError

__all__ = ["Moments", "zca"]


class Moments:
    """Adds up rows (samples, dims) in float64, each chunk around its own mean.

    >>> moments = Moments()
    >>> for chunk in torch.tensor([[0.0, 1.0], [2.0, 5.0], [4.0, 9.0]]).split(2):
    ...     moments.add(chunk)
    >>> moments.covariance.tolist()
    [[4.0, 8.0], [8.0, 16.0]]
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(())
        self._scatter = torch.zeros(())

    def add(self, rows: Tensor) -> None:
        """Take in a chunk of rows; merging two chunks shifts each to the common mean."""
        if not len(rows):
            return
        rows = rows.double()
        mean = rows.mean(0)
        centred = rows - mean
        scatter = centred.T @ centred
        if not self.count:
            self.count, self.mean, self._scatter = len(rows), mean, scatter
            return
        total = self.count + len(rows)
        gap = mean - self.mean
        self._scatter += scatter + torch.outer(gap, gap) * (self.count * len(rows) / total)
        self.mean = self.mean + gap * (len(rows) / total)
        self.count = total

    @property
    def covariance(self) -> Tensor:
        """X X^T / (N - 1) of all rows so far, X being mean-subtracted: equation (2).

        Raises:
            UsageError: fewer than two rows came.
        """
        if self.count < 2:
            raise UsageError(f"a covariance needs two samples or more; got {self.count}")
        return self._scatter / (self.count - 1)


def zca(covariance: Tensor, eps: float = 1e-5) -> Tensor:
    """The whitening W = P (D + eps d)^(-1/2) P^T of a covariance P D P^T, with d its mean variance.

    Equations (4) to (8): the paper's D are the eigenvalues of X X^T, (N - 1) times those of the
    covariance, which is where its factor sqrt(N - 1) comes from. ``eps`` keeps dims that do not
    vary from being blown up.

    >>> zca(torch.tensor([[4.0, 0.0], [0.0, 0.25]]), eps=0.0).diagonal().tolist()
    [0.5, 2.0]
    """
    values, vectors = torch.linalg.eigh(covariance)
    floor = max(eps * float(values.clamp_min(0).mean()), torch.finfo(values.dtype).tiny)
    return (vectors * (values.clamp_min(0) + floor).rsqrt()) @ vectors.T
