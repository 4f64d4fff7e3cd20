"""A Gaussian process over points: the value a point is likely to have, and how sure that is.

The covariance of two points is a constant, a share of their inner product and a Matern function
(5/2) of their distance, with a scale for each coordinate: most decide little (Rasmussen and
Williams, 2006, sections 4.2 and 5.4.1). Scales, shares and noise are those most likely for the
values seen, under loose priors, found by gradient; they change slowly, so not for every new value.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Surrogate"]

_CONSTANT = 10.0  # variance of the common level
_GROWN = 1.25  # times as many values as when the settings were last found: they are found again
_STEPS, _RATE = 40, 0.1  # of Adam
_DISTINCT = 10  # columns of values that settings are judged by, at most: they say much the same
_JUDGED = 256  # values that settings are judged by, at most: the time grows with their cube
_LEAST_NOISE = 1e-6  # beside the noise: rounding
_ROOT5 = math.sqrt(5)

Floats = NDArray[Any]


class Surrogate:
    """Predicts values from values seen before.

    Example:
        >>> import numpy as np
        >>> x = np.linspace(0, 1, 9)[:, None]
        >>> surrogate = Surrogate()
        >>> surrogate.fit(x, x[:, 0] ** 2)
        >>> mean, deviation = surrogate.predict(np.array([[0.55]]))
        >>> bool(abs(mean[0] - 0.3025) < 0.01)
        True
    """

    def __init__(self) -> None:
        self._settings: _Settings | None = None
        self._settled = 0

    def fit(self, points: Floats, values: Floats) -> None:
        """Take over ``values`` seen at ``points``, one a row, in place of what was known.

        Several columns of values are of quantities that vary alike, each around its own mean. All
        is computed in the precision of the values.
        """
        seen = torch.as_tensor(values)
        self._points = torch.as_tensor(points).to(seen.dtype)
        self._mean = seen.mean(0)
        self._spread = max(float(seen.var(0, correction=0).mean().sqrt()), 1e-12)
        target = (seen - self._mean) / self._spread
        if self._settings is None:
            self._settings = _Settings(self._points.shape[1])
        if len(target) >= _GROWN * self._settled:
            some = _some(len(target))
            self._settings.settle(self._points[some], target[some])
            self._settled = len(target)
        self._lower = _factor(self._settings.covariance(self._points))
        columns = target.reshape(len(target), -1)
        self._weights = torch.cholesky_solve(columns, self._lower).reshape(target.shape)

    @property
    def noise(self) -> float:
        """Standard deviation of what the coordinates do not explain."""
        assert self._settings is not None, "fit comes first"
        return self._spread * math.sqrt(self._settings.noise)

    def predict(self, points: Floats) -> tuple[Floats, Floats]:
        """Return mean and standard deviation at each of ``points``, the latter for all columns."""
        assert self._settings is not None, "fit comes first"
        asked = torch.as_tensor(points).to(self._points.dtype)
        between = self._settings.between(asked, self._points)
        known = torch.linalg.solve_triangular(self._lower, between.T, upper=False)
        variance = (self._settings.alone(asked) - (known * known).sum(0)).clamp_min(0)
        means = self._mean + self._spread * (between @ self._weights)
        return means.numpy(), (self._spread * variance.double().sqrt()).numpy()

    def left_out(self) -> tuple[Floats, Floats]:
        """How far each value seen lies above what the others predict there, and the standard
        deviation of that (Rasmussen and Williams, 2006, section 5.4.2).
        """
        sure = torch.cholesky_inverse(self._lower).diagonal()
        above = self._weights / sure.reshape(-1, *[1] * (self._weights.ndim - 1))
        return (self._spread * above).numpy(), (self._spread * sure.rsqrt()).numpy()


class _Settings:
    """Logarithms of the scales of the coordinates, and of three variances.

    They are those of the Matern part, of the linear part and of the noise.
    """

    def __init__(self, coordinates: int) -> None:
        usual = -1.5 - 0.5 * math.log(coordinates / 10)
        self._usual = torch.tensor([*[usual] * coordinates, 0.0, -1.0, -5.0], dtype=torch.float64)
        self._sure = torch.tensor([*[1.0] * coordinates, 0.25, 0.25, 0.1], dtype=torch.float64)
        self._logs = self._usual.clone()

    def settle(self, points: Tensor, target: Tensor) -> None:
        """Move towards what is most likely for ``target``, the columns of which weigh the same."""
        columns = target.reshape(len(target), -1)
        count = columns.shape[1]
        if count > len(columns):  # fewer columns of the same products take less time
            columns = torch.linalg.qr(columns.T, mode="r").R.T
        adam = torch.optim.Adam([self._logs], lr=_RATE)
        for _ in range(_STEPS):
            self._logs.grad = self._gradient(points, columns, count)
            adam.step()

    def between(self, a: Tensor, b: Tensor) -> Tensor:
        """The covariance of each of ``a`` with each of ``b``, without noise."""
        matern, linear, _ = self._variances()
        *_, smooth = self._smooth(a, b)
        return smooth.mul_(matern).add_(a @ b.T, alpha=linear / a.shape[1]).add_(_CONSTANT)

    def _smooth(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled distances, how they make covariances fall, and the Matern function of them."""
        scales = self._scales().to(a.dtype)
        distance = torch.cdist(a * scales, b * scales).mul_(_ROOT5)
        fall = torch.exp(-distance)
        return distance, fall, (1 + distance).add_(distance**2 / 3).mul_(fall)

    def alone(self, points: Tensor) -> Tensor:
        """The variance at each point."""
        matern, linear, _ = self._variances()
        return matern + linear * (points * points).mean(1) + _CONSTANT

    def covariance(self, points: Tensor) -> Tensor:
        """The covariance of values seen at ``points``."""
        found = self.between(points, points)
        found.diagonal().add_(self.noise + _LEAST_NOISE)
        return found

    @property
    def noise(self) -> float:
        """The variance of the noise."""
        return self._variances()[2]

    def _scales(self) -> Tensor:
        return self._logs[:-3].exp()

    def _variances(self) -> tuple[float, float, float]:
        matern, linear, noise = self._logs[-3:].exp().tolist()
        return matern, linear, noise

    def _gradient(self, points: Tensor, columns: Tensor, count: int) -> Tensor:
        """Of the negative logarithm of the posterior likelihood, in the logarithms.

        The likelihood of ``count`` columns that have the products of these, to the power by which
        no more than ``_DISTINCT`` count.
        """
        matern, linear, noise = self._variances()
        distance, fall, smooth = self._smooth(points, points)
        products = points @ points.T
        covariance = (smooth * matern).add_(products, alpha=linear / points.shape[1])
        covariance.add_(_CONSTANT).diagonal().add_(noise + _LEAST_NOISE)
        inverse = torch.cholesky_inverse(_factor(covariance))
        weights = inverse @ columns
        # What the likelihood's slope goes by, for a column.
        slack = (inverse - weights @ weights.T / count) / 2 * min(count, _DISTINCT)
        steep = slack * (matern * 5 / 3 * (1 + distance) * fall)
        apart = 2 * (steep.sum(1) @ points**2 - (points * (steep @ points)).sum(0))
        variances = [
            matern * (slack * smooth).sum(),
            linear / points.shape[1] * (slack * products).sum(),
            noise * slack.diagonal().sum(),
        ]
        slope = torch.cat([-(self._scales() ** 2) * apart, torch.stack(variances).double()])
        return slope + self._sure * (self._logs - self._usual)


def _some(count: int) -> Tensor:
    """Places of the values that settings are judged by."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(count))[:_JUDGED]


def _factor(covariance: Tensor) -> Tensor:
    """The Cholesky factor; a little noise is added where rounding leaves none."""
    lower, failed = torch.linalg.cholesky_ex(covariance)
    while failed:
        covariance = covariance + 1e-3 * torch.eye(len(covariance), dtype=covariance.dtype)
        lower, failed = torch.linalg.cholesky_ex(covariance)
    return lower
