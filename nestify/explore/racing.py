"""Racing: which candidates of a round are clearly behind, from the samples scored so far.

Candidates see the same samples, so they are compared sample by sample (a paired test), which takes
the difficulty of a sample out of the comparison. The bound is the normal one with a correction for
samples drawn from a finite set without replacement: when all have been seen, nothing is uncertain.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from statistics import NormalDist

from nestify.explore.protocol import Merit, Samples

__all__ = ["behind", "stages"]

_RISK = 0.01  # of a round in which any candidate is stopped that would have been kept
_LEAST = 16  # samples, below which nobody is judged


def behind(samples: Sequence[Samples], merits: Sequence[Merit], keep: int, total: int) -> set[int]:
    """The candidates whose merit lies below that of the ``keep``-th best, with confidence.

    >>> import numpy as np
    >>> good, bad = np.ones(100), np.zeros(100)
    >>> behind([good, bad, bad], [Merit()] * 3, 1, 1000)
    {1, 2}

    Args:
        samples: the scores of each candidate on the same samples.
        merits: what a score is worth.
        keep: how many will be used.
        total: how many samples there are in all.
    """
    seen = len(samples[0])
    if len(samples) <= keep or seen < _LEAST:
        return set()
    worth = [(x - m.base) * m.rate for x, m in zip(samples, merits, strict=True)]
    order = sorted(range(len(worth)), key=lambda i: (-float(worth[i].mean()), i))
    pivot, others = worth[order[keep - 1]], order[keep:]
    z = NormalDist().inv_cdf(1 - _RISK / len(others))
    unseen = max(0.0, (total - seen) / max(1, total - 1))
    spread = max(float(x.max()) for x in samples) - min(float(x.min()) for x in samples)
    fastest = max(m.rate for m in merits)
    return {i for i in others if _clearly(pivot - worth[i], z, unseen, spread * fastest)}


def _clearly(lead: Samples, z: float, unseen: float, spread: float) -> bool:
    """Whether the mean lead is above 0, as far as these samples tell.

    One sample at a distance of the whole spread is counted in, so that samples that happen to agree
    do not pass for certainty.
    """
    mean = float(lead.mean())
    variance = (float(((lead - mean) ** 2).sum()) + spread**2) / len(lead)
    return mean > z * math.sqrt(variance / len(lead) * unseen)


def stages(parts: int) -> list[range]:
    """Parts of the data in runs of 1, 1, 2, 4, ...: after each, those behind are stopped.

    >>> stages(6)
    [range(0, 1), range(1, 2), range(2, 4), range(4, 6)]
    """
    edges = [0, 1]
    while edges[-1] < parts:
        edges.append(min(parts, 2 * edges[-1]))
    return [range(a, b) for a, b in itertools.pairwise(edges)]
