"""The two methods without feedback: draws from the space, and the same share of every unit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from nestify.explore.protocol import Problem, Round, Rounds, check_options
from nestify.support.arguments import whole

__all__ = ["Random", "Uniform"]

_ROUND = 32  # subnets a round: enough to keep workers busy


@dataclass(frozen=True, slots=True)
class Random:
    """Subnets drawn from the space, each unit on its own.

    Raises:
        UsageError: an option out of range.
    """

    count: int = 256

    def __post_init__(self) -> None:
        check_options(self, count=whole(1))

    def rounds(self, problem: Problem) -> Rounds:
        """Yield draws, the largest subnet first."""
        yield Round([problem.space.largest()])
        generator = torch.Generator().manual_seed(problem.seed)
        for begun in range(0, self.count, _ROUND):
            size = min(_ROUND, self.count - begun, problem.left)
            if size <= 0:
                return
            yield Round([problem.space.sample(generator) for _ in range(size)])


@dataclass(frozen=True, slots=True)
class Uniform:
    """One share of every unit, from all of it down.

    Raises:
        UsageError: an option out of range.
    """

    count: int = 32

    def __post_init__(self) -> None:
        check_options(self, count=whole(1))

    def rounds(self, problem: Problem) -> Rounds:
        """Yield one round."""
        count = min(self.count, problem.left - 1)
        shares = np.linspace(1, 0, count + 2)[1:-1]
        yield Round([problem.space.largest(), *(problem.space.at(float(s)) for s in shares)])
