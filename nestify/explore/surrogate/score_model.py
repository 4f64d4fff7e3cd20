"""What subnets are likely to score, foretold sample by sample where each one is a hit or a miss.

A share of hits is hard to foretell: it is a single number, bounded, and flat where nearly all are
hits. Whether one sample is hit is decided by a margin that goes on beyond the bound, and samples
are many. So a Gaussian process is fitted to all of them at once, with the same covariance. What it
foretells is stretched, as it shrinks what it is not sure of, cut off at hit and miss, and only then
averaged. How far that is off shows where each subnet in turn is left out; where a process fitted to
the scores themselves is off by much less, that one foretells. With many more scores the two are
compared again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from nestify.explore.surrogate.gaussian_process import Surrogate

__all__ = ["Forecast", "Foretold", "are_hits"]

_STRETCH = 1.6  # undoes about what a process that has seen some hundred subnets shrinks
_WORSE = 1.5  # times what the other one is off by: more, and it is the other that foretells
_GROWN = 1.5  # times as many fits as when the two were last compared: they are again
_NORMAL = 0.6745  # the median of how far a standard normal lies from 0
_MOST = 2048  # samples that stand for all that are open: the time grows with them
_ROOM = 1 << 22  # numbers at a time
_RAISED, _RAISED_EACH = 1.0, 0.5  # standard deviations by which an optimist raises means

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Foretold(NamedTuple):
    """The mean of what each point may score, that mean as an optimist sees it, and the standard
    deviation of the score.
    """

    means: Floats
    likely: Floats
    spreads: Floats


class Forecast:
    """Foretells scores from those seen before.

    Example:
        >>> import numpy as np
        >>> x, easy = np.linspace(0, 1, 9)[:, None], np.linspace(0, 1, 50)
        >>> hits = (x > easy).astype(float)
        >>> forecast = Forecast()
        >>> forecast.fit(x, hits.mean(1), hits, np.ones(9, bool))
        >>> bool(abs(forecast.at(np.array([[0.55]])).means[0] - 0.55) < 0.05)
        True
    """

    def __init__(self) -> None:
        self._whole, self._each = Surrogate(), Surrogate()
        self._hits: _Hits | None = None
        self._fits = self._compared = 0

    def fit(self, points: Floats, scores: Floats, samples: Floats, whole: Bools) -> None:
        """Take over the scores seen at ``points`` in place of those known before.

        ``samples`` has a row for each: the scores of single samples, which scores are the means of,
        or estimates of them where the row is not one of the ``whole``.
        """
        self._fits += 1
        hits = None
        if are_hits(samples[whole]):
            hits = _Hits(
                self._each, points, samples.clip(samples[whole].min(), samples[whole].max())
            )
        if hits is None or self._hits is None or self._fits >= _GROWN * self._compared:
            self._whole.fit(points, scores)
            self._compared = self._fits
            if hits is not None and not hits.off < _WORSE * self._off():
                hits = None
        self._hits = hits

    def _off(self) -> float:
        """Half of the scores seen lie within this of what the others' scores foretell there."""
        return float(np.median(np.abs(self._whole.left_out()[0])))

    def at(self, points: Floats) -> Foretold:
        """What each of ``points`` is likely to score."""
        if self._hits is not None:
            return self._hits.at(points)
        means, deviations = self._whole.predict(points)
        spreads = np.hypot(deviations, self._whole.noise)
        return Foretold(means, means + _RAISED * deviations, spreads)


def are_hits(samples: Floats) -> bool:
    """Whether rows of scores of samples are of hits and misses: of two values, which differ.

    >>> are_hits(np.array([[0.0, 1.0], [1.0, 1.0]])), are_hits(np.array([[0.0, 1.0], [0.5, 1.0]]))
    (True, False)
    """
    two = ((samples == samples.min()) | (samples == samples.max())).all()
    return bool(two and samples.shape[1] > 1 and np.ptp(samples, axis=0).any())


class _Hits:
    """A process fitted to rows of hits and misses; those that are alike in all rows are set.

    Half of the scores seen lie within ``off`` of what all others foretell there.
    """

    def __init__(self, process: Surrogate, points: Floats, samples: Floats) -> None:
        self._low, self._width = float(samples.min()), float(np.ptp(samples))
        shares = (samples - self._low) / self._width
        differ = np.ptp(shares, axis=0) > 0
        open_ = np.flatnonzero(differ)
        self._open, self._set = len(open_) / len(differ), shares[0, ~differ].sum() / len(differ)
        # They are noisy: single precision tells as much, in half of the time.
        some = shares[:, open_[:: -(-len(open_) // _MOST)]].astype(np.float32)
        process.fit(points, some)
        above, deviations = process.left_out()
        off = np.abs(self._means(some - above) - samples.mean(1))
        self.off = float(np.median(off))
        self._process, self._scale = process, float(np.median(off / deviations)) / _NORMAL

    def at(self, points: Floats) -> Foretold:
        rows = _ROOM // _MOST
        parts = [self._part(points[i : i + rows]) for i in range(0, len(points), rows)]
        return Foretold(*map(np.concatenate, zip(*parts, strict=True)))

    def _part(self, points: Floats) -> Foretold:
        shares, deviations = self._process.predict(points)
        means, spreads = self._means(shares), np.hypot(deviations, self._process.noise)
        raised = means + _RAISED_EACH * self._scale * deviations
        return Foretold(means, raised, self._scale * spreads)

    def _means(self, shares: NDArray[Any]) -> Floats:
        """The means over all samples, of what was foretold of open ones."""
        hits = torch.as_tensor(shares - 0.5).mul_(_STRETCH).add_(0.5).clamp_(0, 1)
        means = hits.mean(1, dtype=torch.float64).numpy()
        return self._low + self._width * (self._set + self._open * means)
