"""What can be named in text: a thing itself, or ``module:attribute``, imported when asked for."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Generic, TypeVar, cast

from nestify.errors import UsageError

__all__ = ["Registry"]

T = TypeVar("T")


class Registry(dict[str, str | T], Generic[T]):
    """Entries by name; ``word`` says in errors what they are.

    >>> shapes: Registry[type] = Registry("shape", {"tuple": "builtins:tuple", "list": list})
    >>> shapes.load("tuple"), shapes.load("list")
    (<class 'tuple'>, <class 'list'>)
    >>> shapes.unknown("tupel")
    UsageError("unknown shape 'tupel': the shapes are tuple, list; did you mean 'tuple'?")
    """

    def __init__(self, word: str, entries: Mapping[str, str | T]) -> None:
        super().__init__(entries)
        self.word = word

    def load(self, name: str) -> T:
        """The thing called ``name``.

        Raises:
            UsageError: there is none; the names are listed, and the closest one.
        """
        entry = self.get(name)
        if entry is None:
            raise self.unknown(name)
        if not isinstance(entry, str):
            return entry
        module, _, attribute = entry.partition(":")
        return cast(T, getattr(importlib.import_module(module), attribute))

    def unknown(self, text: str, name: str | None = None) -> UsageError:
        """The error for ``text``, in which ``name`` is no entry."""
        close = difflib.get_close_matches((text if name is None else name).lower(), self, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return UsageError(
            f"unknown {self.word} {text!r}: the {self.word}s are {', '.join(self)}{hint}"
        )
