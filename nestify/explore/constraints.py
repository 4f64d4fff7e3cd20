"""Upper bounds on costs: checking them, meeting them, and saying what is closest when none does.

A constraint is a cost and its bound: ``latency_ms=5``. ``latency_ms@phone=8`` bounds it on one of
several targets; without a target the first one is meant.
"""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence

from nestify.errors import UsageError

COSTS = ("macs", "params", "size_bytes", "activation_bytes", "latency_ms")

# What a subnet costs, by the name of the cost and of the target (None: the first one).
Value = Callable[[str, str | None], float | None]


def check_cost_name(name: str) -> None:
    """Raise UsageError if ``name`` is no cost."""
    if name not in COSTS:
        close = difflib.get_close_matches(str(name), COSTS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UsageError(f"unknown cost {name!r}: the costs are {', '.join(COSTS)}{hint}")


def check_constraints(
    constraints: Mapping[str, float], targets: Sequence[str] | None = None
) -> None:
    """Raise UsageError if a constraint has an unknown cost or target, or no number as its bound."""
    for key, bound in constraints.items():
        name, target = split_key(key)
        check_cost_name(name)
        if target is not None and targets is not None and target not in targets:
            raise UsageError(
                f"the constraint {key} names an unknown target: there are {', '.join(targets)}"
            )
        if not _is_number(bound):
            holds_one = hasattr(bound, "item") and not isinstance(bound, numbers.Real)
            hint = "; of a tensor pass its item()" if holds_one else ""
            raise UsageError(f"the constraint {key}={bound!r} is no number{hint}")


def split_key(key: str) -> tuple[str, str | None]:
    """The cost and the target of a constraint's name.

    Example:
        >>> split_key("latency_ms@phone"), split_key("macs")
        (('latency_ms', 'phone'), ('macs', None))
    """
    name, at, target = key.partition("@")
    return name, target if at else None


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):  # NumPy's count themselves
        return False
    try:
        return not math.isnan(value)
    except OverflowError:  # an int that is too large to compare to costs
        return False


def parse_constraints(texts: Iterable[str]) -> dict[str, float]:
    """Read constraints as they are written on the command line.

    Example:
        >>> parse_constraints(["latency_ms@cpu=5", "params=2e6"])
        {'latency_ms@cpu': 5.0, 'params': 2000000.0}

    Raises:
        UsageError: not ``NAME=NUMBER``, an unknown name, or a name twice.
    """
    constraints: dict[str, float] = {}
    for text in texts:
        name, found, number = (part.strip() for part in text.partition("="))
        if not found:
            raise UsageError(f"constraint {text!r} is not NAME=NUMBER, such as latency_ms=5")
        check_cost_name(split_key(name)[0])
        if name in constraints:
            raise UsageError(f"constraint {name} is given twice")
        try:
            constraints[name] = float(number)
        except ValueError:
            raise UsageError(f"constraint {text!r}: {number!r} is no number") from None
    check_constraints(constraints)
    return constraints


def meets(value: Value, constraints: Mapping[str, float]) -> bool:
    """Tell whether a subnet is within every bound; an unknown latency is within none."""
    return all(_within(value(*split_key(key)), bound) for key, bound in constraints.items())


def infeasible_message(values: Iterable[Value], constraints: Mapping[str, float]) -> str:
    """Say which constraints cannot be met, and the closest value each could have.

    The closest feasible value of a cost is its least value among the points that meet all *other*
    constraints, or among all points where there are none.
    """
    values = list(values)
    parts = [part for key in constraints for part in _closest(key, values, constraints)]
    if not parts:  # each can be met, but no two together: name the point that misses by least
        nearest = min(values, key=lambda value: excess(value, constraints))
        costs = ((key, nearest(*split_key(key))) for key in constraints)
        shown = (f"{key} {readable(cost)}" for key, cost in costs if cost is not None)
        parts = [f"the closest feasible point has {', '.join(shown)}"]
    asked = " and ".join(f"{key} <= {readable(bound)}" for key, bound in constraints.items())
    return f"no subnet meets {asked}: {'; '.join(parts)}"


def _closest(key: str, values: list[Value], constraints: Mapping[str, float]) -> list[str]:
    name, target = split_key(key)
    known = [value for value in values if value(name, target) is not None]
    if not known:
        return [f"{key} was measured for no point"]
    others = {other: bound for other, bound in constraints.items() if other != key}
    feasible = [value for value in known if meets(value, others)] or known
    closest = min(cost for value in feasible if (cost := value(name, target)) is not None)
    if closest <= constraints[key]:
        return []
    return [f"the closest feasible {key} is {readable(closest)}"]


def excess(value: Value, constraints: Mapping[str, float]) -> float:
    """By which factor the worst bound is missed; infinite where a cost is not known.

    Example:
        >>> excess(lambda name, target: 30.0, {"macs": 20.0})
        1.5
    """
    worst = 0.0
    for key, bound in constraints.items():
        cost = value(*split_key(key))
        worst = max(worst, math.inf if cost is None else cost / max(bound, 1e-9))
    return worst


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
