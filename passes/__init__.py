"""The rewrite passes, one a file; imported as ``nestify.passes``.

A pass is a frozen dataclass: ``name``, its options as fields, ``apply(graph) -> graph``. A recipe
is text, passes joined by ``+``, options in braces: ``"root-8{init=he}+fn3-channel{core=0.35}"``.

Imports: all rooms up to runtime, and not emit. Start reading: ``fn3_channel``, then
``ordered_dropout``.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, cast, runtime_checkable

from nestify.errors import UsageError
from nestify.graph.graph import Graph
from nestify.support.option_text import read_options, split_options

__all__ = ["PASSES", "Pass", "calibrated", "parse_recipe", "without_data"]


class Pass(Protocol):
    """Rewrites an analysed graph, or chooses units of it; the graph is valid before and after."""

    @property
    def name(self) -> str:
        """How recipes call it."""
        ...

    def apply(self, graph: Graph) -> Graph:
        """Return the graph with the pass's change; ``graph`` itself stays as it is."""
        ...


@runtime_checkable
class _Reads(Protocol):
    """A pass that may read data."""

    def without_data(self) -> Pass:
        """Return the pass that makes the same graph without any."""
        ...


PASSES: Mapping[str, str] = {
    "fn3-channel": "nestify.passes.fn3_channel:Fn3Channel",
    "fn3-head": "nestify.passes.fn3_head:Fn3Head",
    "fn3-layer": "nestify.passes.fn3_layer:Fn3Layer",
    "fn3-neuron": "nestify.passes.fn3_neuron:Fn3Neuron",
    "fn3-path": "nestify.passes.fn3_path:Fn3Path",
    "column-N": "nestify.passes.column:Column",
    "rank": "nestify.passes.rank:Rank",
    "root-N": "nestify.passes.root:Root",
    "tree-N": "nestify.passes.tree:Tree",
}


def parse_recipe(recipe: str) -> tuple[Pass, ...]:
    """Read a recipe.

    >>> parse_recipe("fn3-channel{core=0.35}+fn3-head")[0].core
    0.35

    Raises:
        UsageError: an unknown pass or option, or a value that does not fit; valid ones are named.
    """
    return tuple(_parse_pass(part.strip(), recipe) for part in recipe.split("+"))


def calibrated(
    passes: Sequence[Pass], batches: Iterable[Any] | None, loss: Any = None
) -> tuple[Pass, ...]:
    """The passes with calibration data, and a loss, for those that read any (fields
    ``calibration``, ``loss``).

    Raises:
        UsageError: a loss that no pass reads.
    """
    fields = [{field.name for field in dataclasses.fields(cast(Any, step))} for step in passes]
    if loss is not None and not any("loss" in names for names in fields):
        raise UsageError(
            f"loss= is for passes that measure by it (rank); the recipe has none of them: "
            f"{', '.join(step.name for step in passes)}"
        )
    if sum("calibration" in names for names in fields) > 1 and batches is not None:
        batches = list(batches)  # it may be a generator, which only the first could read

    def given(step: Any, names: set[str]) -> Any:
        values = {"calibration": batches, "loss": loss}
        chosen = {n: value for n, value in values.items() if n in names and value is not None}
        return dataclasses.replace(step, **chosen) if chosen else step

    return tuple(map(given, passes, fields))


def without_data(passes: Sequence[Pass]) -> tuple[Pass, ...]:
    """The passes as they make the same graph, with other values in its tensors, from no data."""
    return tuple(step.without_data() if isinstance(step, _Reads) else step for step in passes)


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
    module, _, cls = PASSES[name].partition(":")
    kind: Any = getattr(importlib.import_module(module), cls)
    return kind(*numbers, **read_options(kind, said, f"pass {name}"))


def _numbered(name: str) -> tuple[str, tuple[int, ...]]:
    """``root-8`` is the pass ``root-N`` of 8."""
    stem, _, number = name.rpartition("-")
    if number.isdigit() and f"{stem}-N" in PASSES:
        return f"{stem}-N", (int(number),)
    return name, ()
