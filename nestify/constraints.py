"""Upper bounds on costs: checking them, meeting them, and saying what is closest when none does."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from nestify.errors import UsageError

if TYPE_CHECKING:
    from nestify.cost import Cost

COSTS = ("macs", "params", "size_bytes", "activation_bytes", "latency_ms")


def check_cost_name(name: str) -> None:
    """Raise UsageError if ``name`` is no cost."""
    if name not in COSTS:
        close = difflib.get_close_matches(name, COSTS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UsageError(f"unknown cost {name!r}: the costs are {', '.join(COSTS)}{hint}")


def check_constraints(constraints: Mapping[str, float]) -> None:
    """Raise UsageError if a constraint has an unknown name or no number as its bound."""
    for name, bound in constraints.items():
        check_cost_name(name)
        if not _is_number(bound):
            raise UsageError(f"the constraint {name}={bound!r} is no number")


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return not math.isnan(value)


def parse_constraints(texts: Iterable[str]) -> dict[str, float]:
    """Read constraints as they are written on the command line.

    Example:
        >>> parse_constraints(["latency_ms=5", "params=2e6"])
        {'latency_ms': 5.0, 'params': 2000000.0}

    Raises:
        UsageError: not ``NAME=NUMBER``, an unknown name, or a name twice.
    """
    constraints: dict[str, float] = {}
    for text in texts:
        name, found, number = (part.strip() for part in text.partition("="))
        if not found:
            raise UsageError(f"constraint {text!r} is not NAME=NUMBER, such as latency_ms=5")
        check_cost_name(name)
        if name in constraints:
            raise UsageError(f"constraint {name} is given twice")
        try:
            constraints[name] = float(number)
        except ValueError:
            raise UsageError(f"constraint {text!r}: {number!r} is no number") from None
    check_constraints(constraints)
    return constraints


def meets(cost: Cost, constraints: Mapping[str, float]) -> bool:
    """Tell whether ``cost`` is within every bound; an unknown latency is within none."""
    return all(_within(getattr(cost, name), bound) for name, bound in constraints.items())


def infeasible_message(costs: Iterable[Cost], constraints: Mapping[str, float]) -> str:
    """Say which constraints cannot be met, and the closest value each could have.

    The closest feasible value of a cost is its least value among the points that meet all *other*
    constraints, or among all points where there are none.
    """
    costs = list(costs)
    parts = [part for name in constraints for part in _closest(name, costs, constraints)]
    if not parts:  # each can be met, but no two together: name the point that misses by least
        nearest = min(costs, key=lambda cost: _excess(cost, constraints))
        values = (f"{name} {readable(getattr(nearest, name))}" for name in constraints)
        parts = [f"the closest feasible point has {', '.join(values)}"]
    asked = " and ".join(f"{name} <= {readable(bound)}" for name, bound in constraints.items())
    return f"no subnet meets {asked}: {'; '.join(parts)}"


def _closest(name: str, costs: list[Cost], constraints: Mapping[str, float]) -> list[str]:
    known = [cost for cost in costs if getattr(cost, name) is not None]
    if not known:
        return [f"{name} was measured for no point"]
    others = {key: bound for key, bound in constraints.items() if key != name}
    closest = min(getattr(c, name) for c in [c for c in known if meets(c, others)] or known)
    if closest <= constraints[name]:
        return []
    return [f"the closest feasible {name} is {readable(closest)}"]


def _excess(cost: Cost, constraints: Mapping[str, float]) -> float:
    values = {name: getattr(cost, name) for name in constraints}
    if None in values.values():
        return math.inf
    return max(values[name] / max(bound, 1e-9) for name, bound in constraints.items())


def readable(value: float) -> str:
    """Write a count with separators, a measurement with four digits.

    Example:
        >>> readable(300774272), readable(4.98765)
        ('300,774,272', '4.988')
    """
    whole = float(value).is_integer() and abs(value) < 1e18
    return f"{int(value):,}" if whole else f"{value:.4g}"


def _within(value: float | None, bound: float) -> bool:
    return value is not None and value <= bound
