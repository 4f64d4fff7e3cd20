"""Methods that torch's compiler leaves alone: what they change is no tensor.

`torch.compiler.disable` says so, too, but imports the compiler, which takes longer than all else
that is imported with torch.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch

__all__ = ["uncompiled"]

F = TypeVar("F", bound=Callable[..., Any])
_COMPILER = "torch._dynamo"


def uncompiled(*, recursive: bool = True) -> Callable[[F], F]:
    """Leave a method out, and with ``recursive`` all that it calls, once there is a compiler.

    >>> class Counter:
    ...     calls = 0
    ...     @uncompiled()
    ...     def count(self):
    ...         self.calls += 1
    ...         return self.calls
    >>> Counter().count()
    1
    """

    def decorate(method: F) -> F:
        left_out: list[Any] = []

        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            if _COMPILER not in sys.modules or not _compiles():
                return method(*args, **kwargs)
            if not left_out:
                left_out.append(_left_out(method, recursive))
            return left_out[0](*args, **kwargs)

        return call  # pyright: ignore[reportReturnType]  # of the same signature

    return decorate


def _compiles() -> bool:
    """Whether the compiler traces this call, or watches for functions to trace: it is told to leave
    one out at the cost of many small calls.
    """
    if torch.compiler.is_compiling():
        return True
    watcher = sys.modules.get("torch._C._dynamo.eval_frame")
    return watcher is None or watcher.get_eval_frame_callback() is not None


def _left_out(method: Callable[..., Any], recursive: bool) -> Any:
    disable: Any = torch.compiler.disable
    return disable(method, recursive=recursive)
