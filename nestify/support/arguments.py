"""What an argument or an option may be: in words for the error, and as the check itself."""

from __future__ import annotations

import math
import numbers
import operator
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from nestify.errors import UsageError
from nestify.support.user_code import kind_of

__all__ = ["NONE", "PATH", "Valid", "check", "check_fields", "instance", "one_of", "real", "whole"]

_NAME_BYTES, _PATH_BYTES = 255, 4095  # at most: what Linux takes
_SHOWN = 60  # characters, above which an error names the kind of a value in place of the value


class Valid(NamedTuple):
    """Values that are allowed.

    >>> (whole(1) | NONE).words, (whole(1) | NONE).holds(0)
    ('a whole number from 1 on, or None', False)
    """

    words: str
    holds: Callable[[Any], bool]

    def __or__(self, other: Valid) -> Valid:
        def holds(value: Any) -> bool:
            return self.holds(value) or other.holds(value)

        return Valid(f"{self.words}, or {other.words}", holds)


def instance(words: str, *types: type) -> Valid:
    """What is of one of ``types``.

    >>> instance("a name", str).holds("me")
    True
    """

    def holds(value: Any) -> bool:
        return isinstance(value, types)

    return Valid(words, holds)


NONE = instance("None", type(None))


def _is_path(value: Any) -> bool:
    try:
        path = os.fspath(value)
        if not isinstance(path, str):
            return False
        raw = os.fsencode(path)
        names = raw.split(os.fsencode(os.sep))
        short = len(raw) <= _PATH_BYTES and all(len(name) <= _NAME_BYTES for name in names)
        return short and b"\0" not in raw
    except (TypeError, UnicodeError):  # UnicodeError: half a surrogate pair
        return False


PATH = Valid(
    f"a path, as text without null characters or a pathlib.Path, of {_PATH_BYTES} bytes at most, "
    f"{_NAME_BYTES} a name",
    _is_path,
)


def whole(least: int, most: float = math.inf) -> Valid:
    """Whole numbers of any type that is made for them, as NumPy's; not bool.

    >>> whole(1).holds(3), whole(1).holds(3.0), whole(0, 7).words
    (True, False, 'a whole number from 0 to 7')
    """

    def holds(value: Any) -> bool:
        try:
            return not isinstance(value, bool) and least <= operator.index(value) <= most
        except TypeError:
            return False

    return Valid(f"a whole number from {least} {'on' if math.isinf(most) else f'to {most}'}", holds)


def real(least: float, most: float, *, above: bool = False) -> Valid:
    """Numbers between two, both included; with ``above`` only what is above ``least``.

    >>> real(0, 1, above=True).words, real(0, 1).holds(math.nan)
    ('a number in (0, 1]', False)
    """

    def holds(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, numbers.Real):  # NumPy's are real too
            return False
        number = float(value)
        return least <= number <= most and not (above and number == least)

    return Valid(f"a number in {'(' if above else '['}{least:g}, {most:g}]", holds)


def one_of(*choices: str) -> Valid:
    """One of a few words.

    >>> one_of("rate", "score").words
    'one of rate, score'
    """

    def holds(value: Any) -> bool:
        return isinstance(value, str) and value in choices

    return Valid(f"one of {', '.join(choices)}", holds)


def check(owner: str, given: Mapping[str, Any], valid: Mapping[str, Valid]) -> None:
    """Raise UsageError for the first of ``given`` that is not valid; ``owner`` has the names.

    >>> check("method fn3", {"candidates": 0}, {"candidates": whole(1)})
    Traceback (most recent call last):
    nestify.errors.UsageError: candidates of method fn3 must be a whole number from 1 on; got 0
    """
    for name, rule in valid.items():
        if not rule.holds(given[name]):
            shown = repr(given[name])
            if len(shown) > _SHOWN or "\n" in shown:
                shown = kind_of(given[name])
            raise UsageError(f"{name} of {owner} must be {rule.words}; got {shown}")


def check_fields(holder: object, owner: str, **valid: Valid) -> None:
    """`check` what ``holder`` has as attributes, such as the fields of a dataclass.

    >>> check_fields(slice(0, -1), "slice", start=whole(0), stop=whole(0))
    Traceback (most recent call last):
    nestify.errors.UsageError: stop of slice must be a whole number from 0 on; got -1
    """
    check(owner, {name: getattr(holder, name) for name in valid}, valid)
