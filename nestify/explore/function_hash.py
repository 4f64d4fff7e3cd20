"""Hashes of functions and data, so that stored scores are used for the evaluator they came from.

A function is its bytecode, its constants, defaults, closure, and whatever of its module it names; a
class is its methods and attributes; data are their values, and any other object is what pickle
would take of it. Functions and classes of libraries go by name, so that a change in a library is
not seen: name the evaluator, or its version, where that matters.
"""

from __future__ import annotations

import copyreg
import dis
import hashlib
import re
import sys
import threading
import warnings
import weakref
from collections import ChainMap
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from types import (
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MappingProxyType,
    MethodType,
    ModuleType,
)
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._ops import OperatorBase
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from nestify.errors import UsageError
from nestify.nested.fingerprint import fingerprint
from nestify.nested.model import NestedModel
from nestify.support.user_code import is_theirs, kind_of

__all__ = ["codeprint"]

_MOST = 4_000_000  # objects; what holds more is refused rather than waited for
_NAMED = 3  # variables of the path to what is refused that the message shows
_PLAIN = (str, bytes, int, float, complex, bool, type(None))
_LOCKS = (type(threading.Lock()), type(threading.RLock()))  # no score depends on them
_ROOTS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF", "LOAD_CLASSDEREF")
_ROOTS_IN_CLASSES = ("LOAD_FROM_DICT_OR_GLOBALS", "LOAD_FROM_DICT_OR_DEREF")  # Python >= 3.12


def codeprint(value: Any) -> str:
    """A hash of a function, of data, or of a tuple of such; the same in every process.

    >>> codeprint(lambda x: x + 1) == codeprint(lambda x: x + 1)
    True
    >>> codeprint([torch.zeros(2)]) == codeprint([torch.ones(2)])
    False

    Raises:
        UsageError: something in it has a state that cannot be told, as a generator or an open file.
    """
    made = _Print(ChainMap(), [], [])
    try:
        made.add(value)
    except UsageError:
        raise
    except Exception as error:  # whatever the user's objects raise, and cycles too deep to follow
        raise made.refusal(value) from error
    return made.digest()


class _Print:
    """One hash; those of a set's items share all but ``seen``, which each has on its own."""

    def __init__(self, seen: ChainMap[int, str], alive: list[Any], path: list[str]) -> None:
        self._hash = hashlib.sha256()
        self._seen = seen
        self._alive = alive  # what is seen must not make room for another of its id
        self._path = path  # the variables that lead to what is being added, for messages

    def digest(self) -> str:
        return self._hash.hexdigest()

    def refusal(self, value: Any) -> UsageError:
        path = self._path[: -_NAMED - 1 : -1]
        where = f" (`{'` of `'.join(path)}`)" if path else ""
        return UsageError(
            f"scores of this evaluate cannot be told from those of another: {kind_of(value)}"
            f'{where} has a state that cannot be read; pass evaluator="a name" of your own to '
            "search, and another name whenever the evaluate or its data change"
        )

    def add(self, value: Any) -> None:
        if type(value) in _PLAIN:
            self._say(type(value).__name__, repr(value))
        elif isinstance(value, ModuleType):
            self._say("named", value.__name__)
        elif type(value) is tuple or isinstance(value, CodeType):
            # Never "again": which constants of a program are one object is up to the compiler.
            self._hold(value)
            self._compound(value)
        elif id(value) in self._seen:
            self._say("again", self._seen[id(value)])
        else:
            self._hold(value)
            self._seen[id(value)] = f"{len(self._seen.maps)}.{len(self._seen.maps[0])}"
            self._compound(value)

    def _hold(self, value: Any) -> None:
        self._alive.append(value)
        if len(self._alive) > _MOST:
            raise self.refusal(value)

    def _say(self, *words: str) -> None:
        for word in words:
            self._bytes(word.encode(errors="surrogatepass"))

    def _bytes(self, raw: bytes | memoryview) -> None:
        self._hash.update(f"{len(raw)}:".encode())
        self._hash.update(raw)

    def _compound(self, value: Any) -> None:
        kind = type(value)
        if kind in (list, tuple):
            self._say(kind.__name__, str(len(value)))
            for item in value:
                self.add(item)
        elif kind in (dict, MappingProxyType):
            self._mapping(value)
        elif kind in (set, frozenset):
            self._say("set", *sorted(self._item(item) for item in value))
        elif isinstance(value, FunctionType):
            self._function(value)
        elif isinstance(value, CodeType):
            self._code(value)
        elif isinstance(value, type):
            self._class(value)
        elif isinstance(value, torch.Tensor):
            self._tensor(value)
        elif kind is np.ndarray:
            self._array(value)
        elif isinstance(value, NestedModel):
            prints = fingerprint(value)
            self._say("nested", prints.structure, prints.weights, repr(value), value.scaling)
        else:
            self._object(value)

    def _item(self, item: Any) -> str:
        """The hash of an item of a set, for which its place in the set must not matter."""
        made = _Print(self._seen.new_child(), self._alive, self._path)
        made.add(item)
        return made.digest()

    def _mapping(self, values: Mapping[Any, Any]) -> None:
        self._say("each", str(len(values)))
        for key, item in values.items():
            self.add(key)
            self.add(item)

    # --- code -------------------------------------------------------------------------------------

    def _function(self, value: FunctionType) -> None:
        compiled = vars(value).get("_torchdynamo_orig_callable")
        users = is_theirs(value.__code__.co_filename)
        if compiled is not None:  # what torch keeps beside it has addresses
            self._say("compiled")
            self.add(compiled)
        elif users or not _is_found(value):
            self._made(value, users)
        else:
            self._say("named", *_label(value))

    def _made(self, value: FunctionType, users: bool) -> None:
        """A function of the user's, or one that a library's decorator has made of it."""
        self._say("function", value.__qualname__.rpartition(".")[2])
        self._add_all(value.__defaults__, value.__kwdefaults__, vars(value))
        cells = _cells(value)
        for name, found in cells.items():
            self._variable(name, found)
        if users:
            self._code(value.__code__)
            self._named_in(value, cells)
        else:
            self._say(str(value.__globals__.get("__name__")), value.__code__.co_qualname)

    def _named_in(self, function: FunctionType, cells: Mapping[str, Any]) -> None:
        """What the code of ``function`` names of its module, and of the modules that it names."""
        for path in sorted(_paths(function.__code__)):
            root = path[0]
            if root in cells:
                found = cells[root]
            elif root in function.__globals__:
                found = function.__globals__[root]
                self._variable(root, found)
            else:
                continue  # a builtin, or not there yet
            if isinstance(found, ModuleType):
                self._attribute(found, path)

    def _attribute(self, module: ModuleType, path: tuple[str, ...]) -> None:
        owner, found = module, module
        for name in path[1:]:
            if isinstance(found, ModuleType):
                owner, found = found, getattr(found, name, None)
        if not _is_library(owner.__name__) or isinstance(found, FunctionType | type | ModuleType):
            self._variable(".".join(path), found)
        elif callable(found):
            self._say("named", *_label(found))

    def _variable(self, name: str, value: Any) -> None:
        self._say("variable", name)
        self._path.append(name)
        self.add(value)
        self._path.pop()

    def _code(self, code: CodeType) -> None:
        self._bytes(code.co_code)
        self._bytes(code.co_exceptiontable)
        self._say("names", *code.co_names, "varnames", *code.co_varnames)
        self.add(code.co_consts)

    def _class(self, kind: type) -> None:
        self._say("class", *_label(kind))
        if not _is_library(_module(kind)):
            self._add_all(type(kind), kind.__bases__)
            self._mapping({name: item for name, item in vars(kind).items() if _counts(name, item)})

    # --- data -------------------------------------------------------------------------------------

    def _tensor(self, value: torch.Tensor) -> None:
        self._say("tensor", *_label(type(value)), str(value.dtype), str(value.layout))
        if value.is_nested:
            self._add_all(*value.unbind())
        elif is_traceable_wrapper_subclass(value):
            names, context = value.__tensor_flatten__()
            self._add_all(context, *(getattr(value, name) for name in names))
        elif value.layout is not torch.strided:
            self._say(str(tuple(value.shape)))
            self._add_all(*_sparse_parts(value.detach()))
        else:
            self._say(str(tuple(value.shape)))
            if not value.is_meta:
                self._elements(value.detach().cpu())

    def _elements(self, value: torch.Tensor) -> None:
        plain = value.dequantize() if value.is_quantized else value.resolve_conj().resolve_neg()
        flat = plain.flatten().clone(memory_format=torch.contiguous_format)
        self._bytes(flat.view(torch.uint8).numpy().data)

    def _array(self, value: np.ndarray[Any, Any]) -> None:
        self._say("array", repr(value.dtype), str(value.shape))
        if value.dtype.hasobject:  # its bytes are addresses
            self.add(value.tolist())
        else:
            self._bytes(np.ascontiguousarray(value).tobytes())

    def _object(self, value: Any) -> None:
        self._say("object")
        self.add(type(value))
        if isinstance(value, MethodType):
            self._add_all(value.__func__, value.__self__)
        elif isinstance(value, property):
            self._add_all(value.fget, value.fset, value.fdel)
        elif isinstance(value, staticmethod | classmethod):
            self.add(value.__func__)
        elif isinstance(value, weakref.ReferenceType):
            self.add(value())
        elif isinstance(value, ContextVar):
            self._add_all(value.name, value.get(None))
        elif isinstance(value, torch.jit.ScriptModule):
            graph = re.sub(r"___torch_mangle_\d+\.", "", str(value.inlined_graph))
            self._add_all(graph, value.state_dict(), value.training)
        elif isinstance(value, OperatorBase):
            self._say(str(value))
        elif isinstance(value, GetSetDescriptorType):  # of an extension type: code in C
            self._say("named", *_label(value))
        elif not isinstance(value, _LOCKS):
            self._reduced(value)

    def _reduced(self, value: Any) -> None:
        """What pickle would take of ``value``."""
        reduce = copyreg.dispatch_table.get(type(value))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                parts: Any = reduce(value) if reduce else value.__reduce_ex__(4)
        except Exception as error:  # whatever the user's objects raise
            raise self.refusal(value) from error
        if isinstance(parts, str):  # found by its name; what it wraps is in its attributes
            self._say("named", *_label(value), parts)
            self.add(dict(getattr(value, "__dict__", {})))
        else:
            if isinstance(value, nn.Module):
                parts = [_unnumbered(p) if isinstance(p, dict) else p for p in parts]
            self._add_all(*(list(p) if isinstance(p, Iterator) else p for p in parts))

    def _add_all(self, *values: Any) -> None:
        self.add(values)


def _cells(function: FunctionType) -> dict[str, Any]:
    """What ``function`` closes over, as far as it is filled in."""
    found: dict[str, Any] = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:
            continue
    return found


def _paths(code: CodeType) -> set[tuple[str, ...]]:
    """The dotted names that code reads from outside: ("F", "relu") where it says ``F.relu(x)``."""
    found: set[tuple[str, ...]] = set()
    path: tuple[str, ...] = ()
    for step in dis.get_instructions(code):
        if path and step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            path = (*path, step.argval)
        elif step.opname != "EXTENDED_ARG":
            found.add(path)
            path = (step.argval,) if step.opname in _ROOTS + _ROOTS_IN_CLASSES else ()
    inner = (_paths(const) for const in code.co_consts if isinstance(const, CodeType))
    return found.union(*inner) - {()}


def _counts(name: str, item: Any) -> bool:
    """Whether something in a class is code or data of the user's, not Python's own notes."""
    if name.startswith("__"):
        return callable(item) or isinstance(item, property | classmethod | staticmethod)
    return name != "_abc_impl"


def _is_library(module: str) -> bool:
    """Whether a module is not the user's, by where it, or else its package, lies."""
    top = module.partition(".")[0]
    files = (getattr(sys.modules.get(name), "__file__", None) for name in (module, top))
    file = next(filter(None, files), None)
    return top in sys.stdlib_module_names if file is None else not is_theirs(file)


def _is_found(value: Any) -> bool:
    """Whether a library has ``value`` under the name that it gives itself."""
    if not _is_library(_module(value)):
        return False
    found: Any = sys.modules.get(_module(value))
    for name in value.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is value


def _module(value: Any) -> str:
    """Where ``value`` says that it is from; types of Cython may say nothing."""
    module = getattr(value, "__module__", None)
    return module if isinstance(module, str) else "builtins"


def _label(value: Any) -> tuple[str, str, str]:
    name = getattr(value, "__qualname__", type(value).__qualname__)
    return _module(value), str(name), str(getattr(value, "__name__", ""))


def _unnumbered(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a module with its hooks in order, whose keys count those of the process."""
    return {
        name: list(item.values()) if "_hooks" in name and isinstance(item, dict) else item
        for name, item in state.items()
    }


def _sparse_parts(value: torch.Tensor) -> tuple[torch.Tensor, ...]:
    if value.layout is torch.sparse_coo:
        value = value.coalesce()
        return value.indices(), value.values()
    if value.layout in (torch.sparse_csr, torch.sparse_bsr):
        return value.crow_indices(), value.col_indices(), value.values()
    if value.layout in (torch.sparse_csc, torch.sparse_bsc):
        return value.ccol_indices(), value.row_indices(), value.values()
    return (value.to_dense(),)
