"""What each argument of `nestify.search` may be."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from nestify.explore.executors import WORKERS
from nestify.graph.cost import CONVENTIONS
from nestify.space import SearchSpace
from nestify.support.arguments import NONE, PATH, Valid, instance, one_of, whole
from nestify.support.strict_json import MAX_INT

__all__ = ["ARGUMENTS"]


def _is_nested(value: Any) -> bool:
    return isinstance(getattr(value, "space", None), SearchSpace)


def _are_targets(value: Any) -> bool:
    names: list[Any] = [value] if isinstance(value, str) else _listed(value)
    return _are_names(names) and 0 < len(names) == len(set(names))


def _are_bounds(value: Any) -> bool:
    return isinstance(value, Mapping) and _are_names(_listed(value))


def _are_names(values: list[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, Collection) else []


def _are_batches(value: Any) -> bool:
    kind: Any = type(value)  # what has items alone can be iterated over as well, as a data set
    return hasattr(kind, "__iter__") or hasattr(kind, "__getitem__")


_BATCHES = Valid("batches, such as a list of them or a data loader", _are_batches) | NONE
_NAME = instance("a string", str)

ARGUMENTS: Mapping[str, Valid] = {
    "nested": Valid("a nested model, as nestify.transform returns", _is_nested),
    "evaluate": Valid("a function that scores a model", callable) | NONE,
    "target": Valid("one or more distinct names, such as 'cpu'", _are_targets),
    "method": Valid(f"{_NAME.words}, such as 'fn3' or 'fn3{{window=0.25}}'", _NAME.holds),
    "constraints": Valid("bounds by the name of their cost, such as {'macs': 2e6}", _are_bounds)
    | NONE,
    "storage": PATH | NONE,
    "batches": _BATCHES,
    "calibrate": _BATCHES,
    "workers": WORKERS,
    "seed": whole(0, MAX_INT),  # those that a plan can hold
    "max_evaluations": whole(3) | NONE,  # the largest subnet, the smallest, and one between
    "convention": one_of(*CONVENTIONS),
    "evaluator": _NAME | NONE,
    "reuse_bytes": whole(0),
    "progress": Valid("a function progress(stage, done, total, note)", callable) | NONE,
}
