"""The area under a front of score and cost, and by how much points would make it grow."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from nestify.explore.pareto import pareto

__all__ = ["Staircase"]

Floats = NDArray[np.float64]


class Staircase:
    """The best score within each cost up to ``end``: the front of ``costs`` and ``scores``.

    Example:
        >>> stairs = Staircase(np.array([0.2, 0.5, 0.6]), np.array([0.5, 0.9, 0.8]), end=1.0)
        >>> stairs.growth(np.array([0.3, 0.5]), np.array([0.7, 0.7])).round(3).tolist()
        [0.04, 0.0]
    """

    def __init__(self, costs: Floats, scores: Floats, end: float) -> None:
        front = pareto(costs.tolist(), scores.tolist())
        self._costs, self._scores, self._end = costs[front], scores[front], end

    def best(self, costs: Floats) -> Floats:
        """The best score within each of ``costs``; below the least cost, the least score."""
        places = np.searchsorted(self._costs, costs, side="right") - 1
        return self._scores[np.maximum(places, 0)]

    def growth(self, costs: Floats, scores: Floats) -> Floats:
        """What each point would add to the area, alone."""
        return (self._widths(costs) * np.maximum(0, scores[:, None] - self._scores)).sum(1)

    def expected_growth(self, costs: Floats, means: Floats, deviations: Floats) -> Floats:
        """What each point adds to the area on average, alone, if its score is drawn from a normal.

        >>> stairs = Staircase(np.array([0.2]), np.array([0.5]), end=1.0)
        >>> points = np.array([0.5]), np.array([0.5]), np.array([0.1])
        >>> stairs.expected_growth(*points).round(4).tolist()
        [0.0199]
        """
        spread = np.maximum(deviations, 1e-12)[:, None]
        gap = means[:, None] - self._scores
        ahead = torch.special.ndtr(torch.as_tensor(gap / spread)).numpy()
        density = np.exp(-0.5 * (gap / spread) ** 2) / math.sqrt(2 * math.pi)
        return (self._widths(costs) * (gap * ahead + spread * density)).sum(1)

    def _widths(self, costs: Floats) -> Floats:
        """Of each step of the stairs, how much lies at or above each of ``costs``."""
        edges = np.append(self._costs, self._end)
        return np.maximum(0, edges[1:] - np.maximum(edges[:-1], costs[:, None]))

    def with_point(self, cost: float, score: float) -> Staircase:
        """The staircase that one more point makes."""
        return Staircase(np.append(self._costs, cost), np.append(self._scores, score), self._end)
