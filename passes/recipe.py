"""Recipes as text: ``root-8{init=he}+fn3-channel{core=0.35}``."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Any, cast

from nestify.errors import UsageError
from nestify.passes.protocol import Pass, Reading
from nestify.support.option_text import read_options, split_options
from nestify.support.registry import Registry

__all__ = ["PASSES", "parse_recipe", "recipe_text", "without_data"]

PASSES: Registry[Any] = Registry(
    "recipe",
    {
        "fn3-channel": "nestify.passes.fn3_channel:Fn3Channel",
        "fn3-head": "nestify.passes.fn3_head:Fn3Head",
        "fn3-layer": "nestify.passes.fn3_layer:Fn3Layer",
        "fn3-neuron": "nestify.passes.fn3_neuron:Fn3Neuron",
        "fn3-path": "nestify.passes.fn3_path:Fn3Path",
        "column-N": "nestify.passes.column:Column",
        "rank": "nestify.passes.rank:Rank",
        "root-N": "nestify.passes.root:Root",
        "tree-N": "nestify.passes.tree:Tree",
    },
)
"""Passes by name; a pass of your own is one entry more."""


def parse_recipe(recipe: str) -> tuple[Pass, ...]:
    """Read a recipe.

    >>> parse_recipe("fn3-channel{core=0.35}+fn3-head")[0].core
    0.35

    Raises:
        UsageError: an unknown pass or option, or a value that does not fit; valid ones are named.
    """
    return tuple(_parse_pass(part.strip(), recipe) for part in recipe.split("+"))


def recipe_text(passes: Sequence[Pass]) -> str:
    """The recipe that gives these passes.

    >>> recipe_text(parse_recipe("root-8{init=he}+fn3-channel{core=0.5}"))
    'root-8+fn3-channel{core=0.5}'
    """
    return "+".join(map(_pass_text, passes))


def _pass_text(step: Pass) -> str:
    name, said = step.name, list[str]()
    for field in dataclasses.fields(cast(Any, step)):
        value = getattr(step, field.name)
        if field.name == "number" and name.endswith("-N"):
            name = f"{name[:-1]}{value}"
        elif value != field.default:
            said.append(f"{field.name}={value}")
    return f"{name}{{{','.join(said)}}}" if said else name


def without_data(passes: Sequence[Pass]) -> tuple[Pass, ...]:
    """The passes as they make the same graph, with other values in its tensors, of no data."""
    return tuple(step.without_data() if isinstance(step, Reading) else step for step in passes)


def _parse_pass(text: str, recipe: str) -> Pass:
    name, said = split_options(text) or (text, None)
    name, numbers = _numbered(name)
    if said is None or name not in PASSES or (name.endswith("-N") and not numbers):
        close = difflib.get_close_matches(name, PASSES, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UsageError(
            f"unknown recipe {text!r} in {recipe!r}; {hint}"
            f"valid: {', '.join(PASSES)}, joined by '+'"
        )
    kind = PASSES.load(name)
    return kind(*numbers, **read_options(kind, said, f"pass {name}"))


def _numbered(name: str) -> tuple[str, tuple[int, ...]]:
    """``root-8`` is the pass ``root-N`` of 8."""
    stem, _, number = name.rpartition("-")
    if number.isdigit() and f"{stem}-N" in PASSES:
        return f"{stem}-N", (int(number),)
    return name, ()
