"""What autograd does in a model while it is traced: a graph says what is computed, and gradients
follow from that.

Blocks under `inference_mode` are traced as those under `no_grad`, ``x.data`` as ``x.detach()``, and
checkpoints as what they run. The backward of another `torch.autograd.Function` and hooks on
gradients have no place in a graph, which is said.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Generator, Iterator
from traceback import walk_stack
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import CheckpointFunction

from nestify.capture.source_lines import place_of

__all__ = ["gradients_of_the_graph"]

_C: Any = vars(torch)["_C"]  # grad modes have no public name that a trace hands on
_LOST = "the nested model's gradients are those of what is computed"


@contextlib.contextmanager
def gradients_of_the_graph(model: nn.Module) -> Generator[dict[str, None]]:
    """Let a trace have all of the gradients that it can; gives a note on each thing that is lost.

    >>> class Sign(torch.autograd.Function):
    ...     @staticmethod
    ...     def forward(ctx, x):
    ...         return x.sign()
    >>> with gradients_of_the_graph(nn.ReLU()) as lost:
    ...     _ = Sign.apply(torch.ones(1))
    >>> [note.split(",")[0].partition(" runs ")[2] for note in lost]
    ['Sign']
    """
    lost = dict.fromkeys(_hooks(model))

    def here() -> str:
        return place_of(model, reversed(list(walk_stack(inspect.currentframe()))))

    def run(cls: type, *args: Any, **kwargs: Any) -> Any:
        if cls is CheckpointFunction:
            function, _, *rest = args
            return function(*rest)
        if cls.__module__.partition(".")[0] != "torch":
            lost[_backward(cls, here())] = None
        with _Unrecorded():
            return inherited.__func__(cls, *args, **kwargs)

    def hook(tensor: torch.Tensor, *args: Any) -> Any:
        lost[f"the forward{here()} registers a hook on a gradient: {_LOST}"] = None
        return registers(tensor, *args)

    function: Any = torch.autograd.Function
    inherited, registers = vars(function)["apply"], torch.Tensor.register_hook
    with (
        _replaced(function, "apply", classmethod(run)),
        _replaced(torch.Tensor, "register_hook", hook),
        _replaced(torch.inference_mode, "__enter__", _enter),
        _replaced(torch.inference_mode, "__exit__", _leave),
        _gradients_off_under_autocast(),
        _replaced(torch.Tensor, "data", property(torch.Tensor.detach, _set_data)),
    ):
        yield lost


@contextlib.contextmanager
def _replaced(owner: type, name: str, value: Any) -> Generator[None]:
    before = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is None:  # inherited
            delattr(owner, name)
        else:
            setattr(owner, name, before)


def _set_data(tensor: torch.Tensor, value: torch.Tensor) -> None:
    if isinstance(tensor, FakeTensor):  # one of the trace
        raise RuntimeError("a new .data leaves no trace")
    _C.TensorBase.data.__set__(tensor, value)


def _enter(block: Any) -> None:
    block.without = torch.no_grad() if block.mode else _C._InferenceMode(False)
    block.without.__enter__()


def _leave(block: Any, *error: Any) -> None:
    block.without.__exit__(*error)


@contextlib.contextmanager
def _gradients_off_under_autocast() -> Generator[None]:
    """Keep what `no_grad` does inside of a block of autocast, where torch.export forgets it."""
    autocast: Any = torch.amp.autocast
    begin, end = autocast.__enter__, autocast.__exit__
    modes: list[_Detached | None] = []

    def enter(block: Any) -> Any:
        entered = begin(block)
        modes.append(_Detached() if torch.is_grad_enabled() else None)
        if (mode := modes[-1]) is not None:
            mode.__enter__()
        return entered

    def leave(block: Any, *error: Any) -> Any:
        if (mode := modes.pop()) is not None:
            mode.__exit__(*error)
        return end(block, *error)

    with _replaced(autocast, "__enter__", enter), _replaced(autocast, "__exit__", leave):
        yield


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
        return self.made(func(*args, **(kwargs or {})), (args, kwargs))

    def made(self, found: Any, given: Any) -> Any:
        """What a function gives, written so."""
        return found


class _Detached(_Unrecorded):
    """Writes what is computed while gradients are off as detached."""

    def made(self, found: Any, given: Any) -> Any:
        """What a function gives, but for its operands, as a detached tensor."""
        if torch.is_grad_enabled():
            return found
        operands = {id(leaf) for leaf in pytree.tree_leaves(given)}

        def detached(made: torch.Tensor) -> torch.Tensor:
            differentiable = made.is_floating_point() or made.is_complex()
            return made.detach() if differentiable and id(made) not in operands else made

        return pytree.tree_map_only(torch.Tensor, detached, found)


def _backward(cls: type, where: str) -> str:
    return (
        f"the forward{where} runs {cls.__qualname__}, an autograd.Function, whose backward a graph "
        f"does not have: {_LOST}. For a backward of another kind write x + (f(x) - x).detach()"
    )


def _hooks(model: nn.Module) -> Iterator[str]:
    """Notes on hooks that were put on gradients before the trace."""
    for name, parameter in model.named_parameters():
        if parameter._backward_hooks:
            yield f"parameter {name!r} has hooks on its gradient, and the nested model's has none"
    for path, module in model.named_modules():
        if vars(module)["_backward_hooks"] or vars(module)["_backward_pre_hooks"]:
            where = f"module {path!r}" if path else "the model"
            yield f"{where} has backward hooks: {_LOST}"
