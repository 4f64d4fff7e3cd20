"""Plain values as Python source: the only things, besides names, that get into a generated file."""

from __future__ import annotations

import keyword
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from nestify.errors import UsageError

_TORCH_CONSTANTS = (torch.dtype, torch.memory_format, torch.layout)


def literal(value: Any, name_of: Callable[[torch.fx.Node], str] | None = None) -> str:
    """Source for a number, text, dtype, device, slice or nesting of them; graph nodes by
    ``name_of``.

    >>> literal((1, [2.5, None], {"dim": slice(0, 2)}, torch.float32))
    '(1, [2.5, None], {"dim": slice(0, 2, None)}, torch.float32)'

    Raises:
        UsageError: the value is none of these.
    """

    def inner(item: Any) -> str:
        return literal(item, name_of)

    if isinstance(value, torch.fx.Node) and name_of is not None:
        return name_of(value)
    if value is None or value is Ellipsis or type(value) in (bool, int):
        return "..." if value is Ellipsis else repr(value)
    if type(value) is float:
        return repr(value) if math.isfinite(value) else f'float("{value}")'
    if type(value) is str:
        return text(value)
    if isinstance(value, _TORCH_CONSTANTS):
        return str(value)
    if isinstance(value, torch.device):
        return f"torch.device({text(str(value))})"
    if isinstance(value, slice):
        return f"slice({inner(value.start)}, {inner(value.stop)}, {inner(value.step)})"
    if isinstance(value, (tuple, list)):
        return _sequence([inner(item) for item in value], brackets=isinstance(value, list))
    if isinstance(value, Mapping) and all(type(key) in (str, int) for key in value):
        return "{" + ", ".join(f"{inner(key)}: {inner(item)}" for key, item in value.items()) + "}"
    raise UsageError(
        f"{value!r} ({type(value).__name__}) has no spelling in a source file; export .onnx or .pt2"
    )


def text(value: str) -> str:
    r"""A string literal, in double quotes where that needs no escapes.

    >>> print(text("same"), text('a"b'))
    "same" 'a"b'
    """
    quoted = repr(value)
    return quoted if '"' in quoted or "\\" in quoted or "'" in value else f'"{quoted[1:-1]}"'


def identifier(name: str) -> bool:
    """Whether a name may stand in source as it is.

    >>> identifier("conv1"), identifier("0"), identifier("class"), identifier("__init__")
    (True, False, False, False)
    """
    return (
        name.isidentifier()
        and name.isascii()
        and not keyword.iskeyword(name)
        and not name.startswith("__")
    )


def _sequence(items: list[str], *, brackets: bool) -> str:
    if brackets:
        return f"[{', '.join(items)}]"
    return f"({items[0]},)" if len(items) == 1 else f"({', '.join(items)})"
