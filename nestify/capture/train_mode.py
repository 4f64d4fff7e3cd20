"""Train and eval: a model is traced in eval; what it would have done in training is found and noted
here.

Three kinds of modules read ``training``. torch.nn's own layers say so in one argument of one op
(dropout, batch norm). Modules without state that are the identity in eval (stochastic depth) leave
a marker op. For all others the model is traced a second time in training mode, and the arguments
that differ are noted.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Generator
from types import CodeType
from typing import Any

import torch
from torch import nn

from nestify.rules import STOCHASTIC
from nestify.support.module_state import left_as_found

__all__ = ["has_own_switch", "mark_stochastic", "mode_readers", "modes_in_training"]


_OWN_SWITCH = (
    *(
        nn.Dropout,
        nn.Dropout1d,
        nn.Dropout2d,
        nn.Dropout3d,
        nn.AlphaDropout,
        nn.FeatureAlphaDropout,
    ),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    *(nn.RNN, nn.LSTM, nn.GRU, nn.RReLU),
)
_TRACERS = re.compile(r"[/\\]torch[/\\](fx|export|_export|_dynamo|_functorch)[/\\]")


@contextlib.contextmanager
def mode_readers(model: nn.Module) -> Generator[set[nn.Module]]:
    """Collect the modules of ``model`` whose ``training`` is read while the block runs."""
    # Where a module has two paths, torch.export runs stand-ins that share the modules' attributes.
    own = {id(vars(module)): module for module in model.modules()}
    readers: set[nn.Module] = set()

    def read(module: nn.Module) -> bool:
        caller = sys._getframe(1).f_code.co_filename  # pyright: ignore[reportPrivateUsage]
        reader = own.get(id(vars(module)))
        if reader is not None and not _TRACERS.search(caller):
            readers.add(reader)
        return vars(module)["training"]

    def write(module: nn.Module, mode: bool) -> None:
        vars(module)["training"] = mode

    watched: Any = nn.Module
    watched.training = property(read, write)
    try:
        yield readers
    finally:
        del watched.training


def has_own_switch(module: nn.Module) -> bool:
    """Whether ``module`` is a layer of torch.nn (or adds nothing to its forward) with one op for
    both modes.
    """
    # A function that was made by exec may have no module.
    own = (type(module).forward.__module__ or "").startswith("torch.nn.modules")
    return own and isinstance(module, _OWN_SWITCH)


def modes_in_training(model: nn.Module) -> dict[str, bool]:
    """The mode of every module after ``model.train()``; a class may keep some in eval."""
    with left_as_found(model):
        model.train()
        return {path: module.training for path, module in model.named_modules()}


# --- markers --------------------------------------------------------------------------------------


def mark_stochastic(model: nn.Module) -> None:
    """Let modules that are the identity in eval leave a marker in the graph (until
    ``left_as_found`` ends).
    """
    _register_marker()
    for path, module in model.named_modules():
        if path and _may_be_stochastic(module):
            vars(module)["forward"] = _marking(module.forward, path)


def _marking(original: Any, path: str) -> Any:
    def forward(*args: Any, **kwargs: Any) -> Any:
        out = original(*args, **kwargs)
        given = [*args, *kwargs.values()]
        if len(given) == 1 and out is given[0] and isinstance(out, torch.Tensor):
            return torch.ops.nestify.stochastic(out, path)
        return out

    return forward


def _register_marker() -> None:
    if hasattr(torch.ops.nestify, "stochastic"):
        return

    def stochastic(x: torch.Tensor, path: str) -> torch.Tensor:
        return x.clone()

    def fake(x: torch.Tensor, path: str) -> torch.Tensor:
        return torch.empty_like(x)

    torch.library.custom_op(STOCHASTIC, stochastic, mutates_args=()).register_fake(fake)


def _may_be_stochastic(module: nn.Module) -> bool:
    """A leaf without state whose code names the mode: it may act in training alone."""
    if has_own_switch(module) or any(
        vars(module)[k] for k in ("_parameters", "_buffers", "_modules")
    ):
        return False
    classes = [
        c for c in type(module).__mro__ if c.__module__.split(".")[0] != "torch" and c is not object
    ]
    functions = [f for c in classes for f in vars(c).values()]
    return any(_names_mode(f.__code__) for f in functions if hasattr(f, "__code__"))


def _names_mode(code: CodeType) -> bool:
    inner = (c for c in code.co_consts if isinstance(c, CodeType))
    return "training" in code.co_names or any(_names_mode(c) for c in inner)
