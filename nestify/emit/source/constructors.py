"""A module of ``torch.nn`` as the call that builds it: read off its signature, proved by
building it.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch

from nestify.emit.source.literals import literal
from nestify.errors import UsageError

_SKIPPED = frozenset(["device", "dtype"])
# Stored as tuples, usually written as one number.
_PER_DIM = frozenset(["kernel_size", "stride", "padding", "dilation", "output_padding"])


def constructor(module: torch.nn.Module) -> str | None:
    """Source that builds a module of the same class, settings and tensor shapes, or None if there
    is none.

    >>> constructor(torch.nn.Conv2d(3, 16, 3, padding=1, bias=False))
    'nn.Conv2d(3, 16, 3, padding=1, bias=False)'

    None is the answer for classes outside ``torch.nn``, for modules with children, and for modules
    whose tensors do not fit their settings.
    """
    kind = type(module)
    if getattr(torch.nn, kind.__name__, None) is not kind or any(True for _ in module.children()):
        return None
    arguments = _arguments(module)
    if arguments is None:
        return None
    positional, keywords = arguments
    if not _same(module, positional, keywords):
        return None
    for name in ("bias", "stride"):  # their defaults follow from other arguments
        fewer = {key: value for key, value in keywords.items() if key != name}
        if len(fewer) < len(keywords) and _same(module, positional, fewer):
            keywords = fewer
    try:
        shown = [literal(value) for value in positional]
        shown += [f"{name}={literal(value)}" for name, value in keywords.items()]
    except UsageError:
        return None
    return f"nn.{kind.__name__}({', '.join(shown)})"


def _arguments(module: torch.nn.Module) -> tuple[list[Any], dict[str, Any]] | None:
    positional: list[Any] = []
    keywords: dict[str, Any] = {}
    for name, parameter in inspect.signature(type(module)).parameters.items():
        if name in _SKIPPED or name.startswith("_"):
            continue
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue  # nn.Identity takes anything and keeps nothing
        required = parameter.default is parameter.empty
        if not hasattr(module, name):
            if required:
                return None
            continue  # an old spelling that the class keeps accepting
        value = _value(module, name)
        if required and not keywords:
            positional.append(value)
        elif required or type(value) is not type(parameter.default) or value != parameter.default:
            keywords[name] = value
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    if dtype is not torch.float32:
        keywords["dtype"] = dtype
    return positional, keywords


def _value(module: torch.nn.Module, name: str) -> Any:
    value = getattr(module, name)
    if name == "bias":
        return value is not None and value is not False
    if name in _PER_DIM and isinstance(value, tuple) and len(set(value)) == 1:
        return value[0]
    return value


def _same(module: torch.nn.Module, positional: list[Any], keywords: dict[str, Any]) -> bool:
    """Whether the call gives a module with the same settings and tensors of the same form."""
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            twin = type(module)(*positional, **keywords)
    except Exception:
        return False
    settings = set(inspect.signature(type(module)).parameters) | set(
        getattr(module, "__constants__", ())
    )
    settings -= {"bias", *_SKIPPED}
    missing = object()
    if any(
        getattr(module, s, missing) != getattr(twin, s, missing)
        for s in settings
        if hasattr(module, s)
    ):
        return False
    return _forms(module) == _forms(twin)


def _forms(module: torch.nn.Module) -> dict[str, tuple[Any, ...]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in module.state_dict().items()}
