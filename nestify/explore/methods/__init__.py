"""The search methods, one a file; each is a frozen dataclass, its options as fields.

A method is named as a recipe's pass is: ``"fn3"``, ``"fn3{window=0.25}"``, ``"evolution"``.
"""

from __future__ import annotations

from typing import Any

from nestify.explore.protocol import Method
from nestify.support.option_text import read_options, split_options
from nestify.support.registry import Registry

__all__ = ["METHODS", "parse_method"]

METHODS: Registry[Any] = Registry(
    "method",
    {
        "fn3": "nestify.explore.methods.fn3:Fn3",
        "algorithm1": "nestify.explore.methods.algorithm1:Algorithm1",
        "greedy": "nestify.explore.methods.greedy:Greedy",
        "evolution": "nestify.explore.methods.evolution:Evolution",
        "random": "nestify.explore.methods.sampling:Random",
        "uniform": "nestify.explore.methods.sampling:Uniform",
    },
)


def parse_method(text: str) -> Method:
    """Read a method.

    >>> parse_method("algorithm1{candidates=5}").candidates
    5

    Raises:
        UsageError: an unknown method or option, or a value that does not fit; valid ones are named.
    """
    name, said = split_options(text.strip()) or (text, None)
    if said is None or name not in METHODS:
        raise METHODS.unknown(text, name)
    kind = METHODS.load(name)
    return kind(**read_options(kind, said, f"method {name}"))
