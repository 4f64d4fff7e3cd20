"""What a model computes by `torch.autograd.Function`, while it is traced.

A trace has the forward of such a function only. That is all there is to a checkpoint, whose
backward is that of what it runs; of others it is said that their backward is lost.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Generator
from traceback import walk_stack
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import CheckpointFunction

from nestify.tracing import place_of

__all__ = ["forwards_only"]

_C: Any = vars(torch)["_C"]  # grad modes have no public name that a trace hands on


@contextlib.contextmanager
def forwards_only(model: nn.Module) -> Generator[dict[str, None]]:
    """Let functions run as a graph can have them; gives a note on each whose backward is lost.

    >>> class Sign(torch.autograd.Function):
    ...     @staticmethod
    ...     def forward(ctx, x):
    ...         return x.sign()
    >>> with forwards_only(nn.ReLU()) as lost:
    ...     _ = Sign.apply(torch.ones(1))
    >>> [note.split(",")[0].partition(" runs ")[2] for note in lost]
    ['Sign']
    """
    function: Any = torch.autograd.Function
    inherited = vars(function)["apply"]
    lost: dict[str, None] = {}

    def apply(cls: type, *args: Any, **kwargs: Any) -> Any:
        if cls is CheckpointFunction:
            run, _, *rest = args
            return run(*rest)
        if cls.__module__.partition(".")[0] != "torch":
            frames = reversed(list(walk_stack(inspect.currentframe())))
            lost[_note(cls, place_of(model, frames))] = None
        with _Unrecorded():
            return inherited.__func__(cls, *args, **kwargs)

    function.apply = classmethod(apply)
    try:
        yield lost
    finally:
        function.apply = inherited


class _Unrecorded(TorchFunctionMode):
    """Keeps `no_grad` out of the trace: in the forward of a function gradients are off anyhow, and
    that they are on behind it no trace would see.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is _C._set_grad_enabled:
            with _C.DisableTorchFunction():
                return func(*args)
        return func(*args, **(kwargs or {}))


def _note(cls: type, where: str) -> str:
    return (
        f"the forward{where} runs {cls.__qualname__}, an autograd.Function, whose backward a graph "
        "does not have: gradients of the nested model are those of what its forward computes. For "
        "a backward of another kind write x + (f(x) - x).detach()"
    )
