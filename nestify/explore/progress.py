"""What a search tells while it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from nestify.pareto import pareto

if TYPE_CHECKING:
    from nestify.explore.rounds import Prices
    from nestify.space import Subnet

__all__ = ["Progress", "front_note"]

Progress = Callable[[str, int, int, str], None]


def front_note(scores: Mapping[Subnet, float], prices: Prices) -> str:
    """Say in a few words where the front stands: its size, and scores at shares of the full cost.

    >>> front_note(ledger.scores, pricer.prices)
    'front of 9; full 0.962, 1/2 0.958, 1/4 0.911'
    """
    if not scores:
        return ""
    subnets, values = list(scores), list(scores.values())
    costs = [float(price) for price in prices(subnets)]
    parts = [f"front of {len(pareto(costs, values))}"]
    for label, share in (("full", 1.0), ("1/2", 0.5), ("1/4", 0.25)):
        within = [v for c, v in zip(costs, values, strict=True) if c <= share * max(costs)]
        if within:
            parts.append(f"{label} {max(within):.3f}")
    return f"{parts[0]}; {', '.join(parts[1:])}"
