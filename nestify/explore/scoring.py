"""The ledger of a search: which subnets were scored, how they did, how many may still be."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from nestify.errors import UsageError
from nestify.usercode import kind_of, user_code

if TYPE_CHECKING:
    from torch import nn

    from nestify.nested import NestedModel
    from nestify.space import Subnet

Progress = Callable[[str, int, int], None]


class Ledger:
    """Scores subnets of ``nested``, each once, until ``limit`` are scored.

    Example:
        >>> ledger = Ledger(nested, evaluate, limit=64)
        >>> ledger.score(nested.space.largest())
        0.93

    Attributes:
        nested: what is scored.
        scores: the score of every subnet so far, in order.
    """

    def __init__(
        self,
        nested: NestedModel,
        evaluate: Callable[[nn.Module], float],
        limit: int,
        progress: Progress | None = None,
    ) -> None:
        self.nested = nested
        self.scores: dict[Subnet, float] = {}
        self._evaluate = evaluate
        self._limit = limit
        self._progress = progress

    @property
    def left(self) -> int:
        """How many more subnets may be scored."""
        return self._limit - len(self.scores)

    def score(self, subnet: Subnet) -> float | None:
        """Return the score of ``subnet``; None if it is not known and none is left."""
        if subnet in self.scores:
            return self.scores[subnet]
        if self.left <= 0:
            return None
        self.nested.eval()  # an evaluate may have left it in training mode
        with self.nested.activate(subnet), user_code("evaluate(model)"):
            value = self._evaluate(self.nested)
        self.scores[subnet] = _finite(value)
        if self._progress is not None:
            self._progress("scoring subnets", len(self.scores), self._limit)
        return self.scores[subnet]


def _finite(value: object) -> float:
    try:
        score = float(value)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError):
        raise UsageError(f"evaluate(model) must return a number, not {kind_of(value)}") from None
    if not math.isfinite(score):
        raise UsageError(f"evaluate(model) must return a finite number, not {score}")
    return score
