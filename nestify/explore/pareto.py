"""The exact Pareto front of costs (lower is better) and scores (higher is better)."""

from __future__ import annotations

from collections.abc import Sequence
from operator import neg


def pareto(costs: Sequence[float], scores: Sequence[float]) -> list[int]:
    """Return the indices that none beats: at most its cost, at least its score, one strictly.

    Example:
        >>> pareto([3, 1, 2], [0.9, 0.5, 0.4])
        [1, 0]
    """
    front: list[int] = []
    for _, _, i in sorted(zip(costs, map(neg, scores), range(len(costs)), strict=True)):
        same = bool(front) and (costs[i], scores[i]) == (costs[front[-1]], scores[front[-1]])
        if not front or same or scores[i] > scores[front[-1]]:
            front.append(i)
    return front
