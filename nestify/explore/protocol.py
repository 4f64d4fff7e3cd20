"""What a search method and the search say to each other.

A method is a generator: it yields a `Round` of subnets and is sent the `Scores` of them. It knows
no model, no storage and no processes, so what it visits depends on its seed and the scores alone: a
search that was killed is resumed by running it again on scores that are known.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from nestify.space import SearchSpace, Subnet
from nestify.support.arguments import Valid, check_fields

__all__ = [
    "Merit",
    "Method",
    "Priced",
    "Problem",
    "Round",
    "Rounds",
    "Samples",
    "Scores",
    "check_options",
]

Samples = NDArray[np.float64]
Priced = Sequence[Subnet] | Mapping[str, NDArray[np.int64]]  # or columns of sizes, by unit
Prices = Callable[[Priced], NDArray[np.float64]]


class Merit(NamedTuple):
    """What a subnet is worth to a method: (score - base) * rate, such as score per MAC saved."""

    base: float = 0.0
    rate: float = 1.0


@dataclass(frozen=True, slots=True)
class Round:
    """Subnets to score together.

    Where ``keep`` is not 0, only so many of the best by ``merits`` will be used, and evaluations of
    the others may stop as soon as they are clearly behind.
    """

    subnets: Sequence[Subnet]
    keep: int = 0
    merits: Sequence[Merit] = ()

    def merit(self, index: int) -> Merit:
        """The merit of one subnet; its score where none was given."""
        return self.merits[index] if self.merits else Merit()


@dataclass(frozen=True, slots=True)
class Scores:
    """The answer to a round, in its order.

    ``values`` has None for what may not be scored any more; ``whole`` tells which scores are of all
    the data, and not an estimate of one that was stopped. ``samples`` has the scores of all samples
    of those that have a value, estimates among them; a score that comes in one piece is one sample.
    """

    values: Sequence[float | None]
    whole: Sequence[bool]
    samples: Sequence[Samples | None]


Rounds = Generator[Round, Scores, None]


@dataclass(frozen=True)
class Problem:
    """What a method knows: the space, what subnets cost, and how many may still be scored.

    ``most`` is the price above which no subnet is of use, where a bound says so. ``before`` is the
    share of the work of an evaluation that comes before each unit's choice does: subnets that agree
    up to there share it.
    """

    space: SearchSpace
    prices: Prices
    seed: int
    budget: Callable[[], int]
    most: float = math.inf
    before: Mapping[str, float] = field(default_factory=dict[str, float])

    @property
    def left(self) -> int:
        """How many more subnets may be scored; a large number where there is no limit."""
        return self.budget()

    def random(self) -> random.Random:
        """Random numbers that depend on the seed only."""
        return random.Random(self.seed)

    def price(self, subnet: Subnet) -> float:
        """What one subnet costs."""
        return float(self.prices([subnet])[0])


class Method(Protocol):
    """A way to choose subnets: a frozen dataclass, its options as fields."""

    def rounds(self, problem: Problem) -> Rounds:
        """Yield rounds until nothing is left to ask; end early once ``problem.left`` is 0."""
        ...


def check_options(method: Method, **valid: Valid) -> None:
    """Raise UsageError where an option of ``method`` is not valid; names are those of the options.

    >>> from nestify.explore.methods.sampling import Uniform
    >>> from nestify.support.arguments import whole
    >>> check_options(Uniform(), count=whole(1))
    """
    check_fields(method, f"method {type(method).__name__.lower()}", **valid)
