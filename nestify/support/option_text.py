"""Text such as ``fn3{trajectories=3}``: a name, and values for the fields of a frozen dataclass."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from nestify.errors import UsageError

__all__ = ["read_options", "split_options"]

_TEXT = re.compile(r"([a-z0-9-]+)(?:\{([^{}]*)\})?")
_SAID = (str, int, float, bool)  # what text can say: not data


def split_options(text: str) -> tuple[str, str] | None:
    """The name and what stands in its braces; None where the text has no such form.

    >>> split_options("fn3{window=0.25}"), split_options("fn3{")
    (('fn3', 'window=0.25'), None)
    """
    match = _TEXT.fullmatch(text)
    return None if match is None else (match.group(1), match.group(2) or "")


def read_options(kind: Any, text: str, what: str) -> dict[str, Any]:
    """Read ``name=value`` pairs, joined by commas, as fields of the dataclass ``kind``.

    Fields are those with a default that text can say. ``what`` names the owner in errors.

    Raises:
        UsageError: an unknown field, one given twice, or a value that does not fit it.
    """
    fields = {f.name: type(f.default) for f in dataclasses.fields(kind) if type(f.default) in _SAID}
    options: dict[str, Any] = {}
    for item in filter(None, text.split(",")):
        key, _, value = (piece.strip() for piece in item.partition("="))
        if key not in fields:
            valid = ", ".join(fields) or "it has none"
            raise UsageError(f"{what} has no option {key!r}; valid: {valid}")
        if key in options:
            raise UsageError(f"option {key} of {what} is given twice")
        try:
            options[key] = fields[key](value)
        except ValueError:
            raise UsageError(
                f"option {key} of {what} must be {fields[key].__name__}, not {value!r}"
            ) from None
    return options
