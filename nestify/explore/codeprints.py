"""Hashes of functions and data, so that stored scores are used for the evaluator they came from.

A function is its bytecode, its constants, defaults, closure, and the functions and plain values of
its own module that it names; data are their values. What has neither (an open file, a socket)
counts by its type. A change in a library that a function calls is not seen: name the evaluator, or
its version, where that matters.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
from collections.abc import Mapping
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

__all__ = ["codeprint"]

_DEPTH = 12
_PLAIN = (str, bytes, int, float, complex, bool, type(None))


def codeprint(value: Any) -> str:
    """A hash of a function, of data, or of a tuple of such; the same in every process.

    >>> codeprint(lambda x: x + 1) == codeprint(lambda x: x + 1)
    True
    >>> codeprint([torch.zeros(2)]) == codeprint([torch.ones(2)])
    False
    """
    digest = hashlib.sha256()
    _Print(digest).add(value, 0)
    return digest.hexdigest()


class _Print:
    def __init__(self, digest: Any) -> None:
        self._digest = digest
        self._seen: dict[int, int] = {}
        self._alive: list[Any] = []  # what is seen must not make room for another of its id

    def add(self, value: Any, depth: int) -> None:
        if isinstance(value, _PLAIN):
            self._say(type(value).__name__, repr(value))
        elif isinstance(value, torch.Tensor):
            self._tensor(value)
        elif isinstance(value, np.ndarray):
            self._say("array", value.dtype.str, str(value.shape))
            self._digest.update(np.ascontiguousarray(value).tobytes())
        elif isinstance(value, ModuleType | type):
            self._say("named", getattr(value, "__module__", ""), value.__name__)
        elif id(value) in self._seen:
            self._say("again", str(self._seen[id(value)]))
        elif depth > _DEPTH:
            self._say("deep", type(value).__qualname__)
        else:
            self._seen[id(value)] = len(self._seen)
            self._alive.append(value)
            self._compound(value, depth + 1)

    def _say(self, *words: str) -> None:
        for word in words:
            raw = word.encode()
            self._digest.update(f"{len(raw)}:".encode() + raw)

    def _tensor(self, value: torch.Tensor) -> None:
        self._say("tensor", str(value.dtype), str(tuple(value.shape)))
        if not value.is_meta:
            flat = value.detach().cpu().flatten().clone(memory_format=torch.contiguous_format)
            self._digest.update(flat.view(torch.uint8).numpy().data)

    def _compound(self, value: Any, depth: int) -> None:
        if isinstance(value, FunctionType):
            self._function(value, depth)
        elif isinstance(value, MethodType):
            self._say("method")
            self._each((value.__func__, value.__self__), depth)
        elif isinstance(value, CodeType):
            self._code(value, depth)
        elif isinstance(value, nn.Module):
            self._say("module", repr(value))
            self._each(value.state_dict(), depth)
        elif isinstance(value, Mapping):
            self._each(value, depth)
        elif isinstance(value, list | tuple):
            self._say(type(value).__name__, str(len(value)))
            for item in value:
                self.add(item, depth)
        elif isinstance(value, set | frozenset):
            self._say("set", *sorted(codeprint(item) for item in value))
        else:
            self._object(value, depth)

    def _each(self, values: Any, depth: int) -> None:
        pairs = list(values.items()) if isinstance(values, Mapping) else list(enumerate(values))
        self._say("each", str(len(pairs)))
        for key, item in pairs:
            self.add(key, depth)
            self.add(item, depth)

    def _function(self, value: FunctionType, depth: int) -> None:
        self._say("function", value.__qualname__.rpartition(".")[2])
        self._code(value.__code__, depth)
        self.add(value.__defaults__, depth)
        self.add(value.__kwdefaults__, depth)
        for cell in value.__closure__ or ():
            try:
                self.add(cell.cell_contents, depth)
            except ValueError:  # not filled in yet
                self._say("empty")
        for name in sorted(_names(value.__code__)):
            if name in value.__globals__:
                self._global(name, value, depth)

    def _global(self, name: str, function: FunctionType, depth: int) -> None:
        found = function.__globals__[name]
        own = getattr(found, "__module__", None) == function.__module__
        data = isinstance(found, (*_PLAIN, torch.Tensor, np.ndarray, list, tuple, dict, nn.Module))
        if data or (own and isinstance(found, FunctionType)):
            self._say("global", name)
            self.add(found, depth)

    def _code(self, code: CodeType, depth: int) -> None:
        self._digest.update(code.co_code)
        self._say(*code.co_names, *code.co_varnames)
        self._each(code.co_consts, depth)

    def _object(self, value: Any, depth: int) -> None:
        kind = type(value)
        self._say("object", kind.__module__, kind.__qualname__)
        if dataclasses.is_dataclass(value):
            self._each({f.name: getattr(value, f.name) for f in dataclasses.fields(value)}, depth)
        elif inspect.isfunction(getattr(kind, "__call__", None)):  # noqa: B004  its code is wanted
            self.add(kind.__call__, depth)
            self._each(vars(value) if hasattr(value, "__dict__") else {}, depth)
        elif hasattr(value, "__dict__"):
            self._each(vars(value), depth)


def _names(code: CodeType) -> set[str]:
    inner = (const for const in code.co_consts if isinstance(const, CodeType))
    return set(code.co_names).union(*(_names(const) for const in inner))
