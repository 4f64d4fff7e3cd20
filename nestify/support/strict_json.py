"""JSON files from outside, read with suspicion.

A file from outside is data from a stranger: JSON with a key twice, a number that is not finite, an
unknown field or a field of another type is refused by name, and nothing in it is ever executed.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any, NoReturn, cast

from nestify.errors import ArtifactError, UsageError
from nestify.support.arguments import PATH, check

MAX_BYTES = 256 * 2**20
MAX_INT = 2**63 - 1


def read_json(path: str | os.PathLike[str], what: str) -> Fields:
    """Read a JSON object from ``path``; ``what`` names it in errors.

    Example:
        >>> plan.save("plan.json")
        >>> read_json("plan.json", "plan").text("format")
        'nestify-plan'

    Raises:
        UsageError: ``path`` is no path, or there is no such file.
        ArtifactError: the file is too large, or no well-formed JSON object.
    """
    check(f"the {what}", {"path": path}, {"path": PATH})
    file = Path(path)
    where = f"{what} {str(file)!r}"
    try:
        if not file.is_file():
            raise UsageError(f"{where} {'is not a file' if file.exists() else 'does not exist'}")
        if file.stat().st_size > MAX_BYTES:
            raise ArtifactError(f"{where} is refused: it is larger than {MAX_BYTES:,} bytes")
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{where} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise ArtifactError(f"{where} is refused: it is not UTF-8 text") from None
    return parse_json(text, where)


def parse_json(text: str, where: str) -> Fields:
    """Parse a JSON object strictly; ``where`` names it in errors.

    Example:
        >>> parse_json('{"version": 1}', "it").integer("version")
        1

    Raises:
        ArtifactError: no JSON object, a key twice, a number that is not finite.
    """
    try:
        value: Any = json.loads(text, object_pairs_hook=_unique, parse_constant=_not_finite)
    except RecursionError:
        raise ArtifactError(f"{where} is refused: it is nested too deeply") from None
    except ValueError as error:
        raise ArtifactError(f"{where} is refused: {error}") from None
    return Fields.of(value, where)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} stands twice in one object")
        found[key] = value
    return found


def _not_finite(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a finite number")


class Fields:
    """The fields of one JSON object, each taken once and by type; `done` refuses what is left.

    Example:
        >>> fields = parse_json('{"seed": 3, "more": 1}', "plan")
        >>> fields.integer("seed")
        3
        >>> fields.done()
        Traceback (most recent call last):
        nestify.errors.ArtifactError: plan is refused: unknown field 'more'
    """

    def __init__(self, values: dict[str, Any], where: str) -> None:
        self._values = dict(values)
        self.where = where

    @classmethod
    def of(cls, value: Any, where: str) -> Fields:
        """Wrap ``value``, which must be a JSON object."""
        if not isinstance(value, dict):
            raise ArtifactError(f"{where} is refused: a JSON object is expected")
        return cls(cast("dict[str, Any]", value), where)

    def _take(self, name: str, expected: str, *types: type) -> Any:
        if name not in self._values:
            raise ArtifactError(f"{self.where} is refused: the field {name!r} is missing")
        value = self._values.pop(name)
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            self._refuse(name, value, expected)
        return value

    def _refuse(self, name: str, value: Any, expected: str) -> NoReturn:
        shown = repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "..."
        raise ArtifactError(f"{self.where} is refused: {name} must be {expected}, not {shown}")

    def text(self, name: str) -> str:
        """Take a string."""
        return self._take(name, "a string", str)

    def choice(self, name: str, choices: Collection[str]) -> str:
        """Take one of a few strings."""
        value = self.text(name)
        if value not in choices:
            self._refuse(name, value, f"one of {', '.join(choices)}")
        return value

    def text_or_none(self, name: str) -> str | None:
        """Take a string or null."""
        return self._take(name, "a string or null", str, type(None))

    def integer(self, name: str) -> int:
        """Take an integer of at most 63 bits that is not negative."""
        value: int = self._take(name, "an integer", int)
        if not 0 <= value <= MAX_INT:
            self._refuse(name, value, f"between 0 and {MAX_INT}")
        return value

    def number(self, name: str, least: float = -math.inf) -> float:
        """Take a finite number, from ``least`` on."""
        value: int | float = self._take(name, "a number", int, float)
        if abs(value) > MAX_INT if isinstance(value, int) else not math.isfinite(value):
            self._refuse(name, value, "a finite number")
        if value < least:
            self._refuse(name, value, f"a number from {least:g} on")
        return float(value)

    def number_or_none(self, name: str, least: float = -math.inf) -> float | None:
        """Take a finite number, from ``least`` on, or null."""
        if name in self._values and self._values[name] is None:
            return self._values.pop(name)
        return self.number(name, least)

    def fields(self, name: str) -> Fields:
        """Take an object."""
        return Fields(self._take(name, "an object", dict), f"{self.where}: {name}")

    def items(self, name: str) -> list[Any]:
        """Take a list."""
        return self._take(name, "a list", list)

    def names(self) -> tuple[str, ...]:
        """Return the names of the fields that have not been taken."""
        return tuple(self._values)

    def done(self) -> None:
        """Refuse the object if a field is left."""
        if self._values:
            raise ArtifactError(
                f"{self.where} is refused: unknown field {next(iter(self._values))!r}"
            )
