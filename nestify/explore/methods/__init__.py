"""The search methods, one a file; each is a frozen dataclass, its options as fields.

A method is named as a recipe's pass is: ``"fn3"``, ``"fn3{window=0.25}"``, ``"evolution"``.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

from nestify.errors import UsageError
from nestify.explore.protocol import Method
from nestify.support.option_text import read_options, split_options

__all__ = ["METHODS", "parse_method"]

METHODS: Mapping[str, str] = {
    "fn3": "nestify.explore.methods.fn3:Fn3",
    "algorithm1": "nestify.explore.methods.algorithm1:Algorithm1",
    "greedy": "nestify.explore.methods.greedy:Greedy",
    "evolution": "nestify.explore.methods.evolution:Evolution",
    "random": "nestify.explore.methods.sampling:Random",
    "uniform": "nestify.explore.methods.sampling:Uniform",
}


def parse_method(text: str) -> Method:
    """Read a method.

    >>> parse_method("algorithm1{candidates=5}").candidates
    5

    Raises:
        UsageError: an unknown method or option, or a value that does not fit; valid ones are named.
    """
    name, said = split_options(text.strip()) or (text, None)
    if said is None or name not in METHODS:
        close = difflib.get_close_matches(name, METHODS, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UsageError(f"unknown method {text!r}: the methods are {', '.join(METHODS)}{hint}")
    module, _, cls = METHODS[name].partition(":")
    kind: Any = getattr(importlib.import_module(module), cls)
    return kind(**read_options(kind, said, f"method {name}"))
