"""What a search tells while it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from nestify.explore.pareto import pareto

if TYPE_CHECKING:
    from nestify.explore.protocol import Prices
    from nestify.space import Subnet

__all__ = ["Progress", "front_note"]

Progress = Callable[[str, int, int, str], None]


def front_note(scores: Mapping[Subnet, float], prices: Prices) -> str:
    """Say in a few words where the front stands: its size, and scores at shares of the full cost.

    >>> from nestify.space import Subnet
    >>> scores = {Subnet({"conv1": size}): score for size, score in ((8, 0.96), (3, 0.95))}
    >>> front_note(scores, lambda subnets: [subnet["conv1"] for subnet in subnets])
    'front of 2; full 0.960, 1/2 0.950'
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
