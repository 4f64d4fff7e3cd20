"""``torch.export`` behind one door: quiet, and with errors that name the module, the line and the
remedy.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Generator
from traceback import walk_tb
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from nestify.capture.autocast import as_asked
from nestify.capture.source_lines import place_of
from nestify.errors import CaptureError, first_line

__all__ = ["export_program", "without_fast_path"]


def export_program(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> ExportedProgram:
    """Trace ``model`` in the modes that its modules are in.

    Raises:
        CaptureError: the model cannot be traced.
    """
    try:
        with (
            warnings.catch_warnings(),
            _quiet(),
            _dropouts_of_their_own(),
            without_fast_path(),
            as_asked(),
        ):
            warnings.simplefilter("ignore")
            return torch.export.export(model, args, kwargs, strict=False)
    except Exception as error:  # torch.export raises many kinds; each becomes one clear message
        raise CaptureError(_explain(model, args, kwargs, error)) from error


@contextlib.contextmanager
def without_fast_path() -> Generator[None]:
    """Attention by its parts: torch's one fused op for it in eval is closed to analysis."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


# These give back their very operand in eval, and the trace would take its later readers for theirs.
_HANDED_BACK = ("alpha_dropout", "dropout1d", "dropout2d", "dropout3d", "feature_alpha_dropout")


@contextlib.contextmanager
def _dropouts_of_their_own() -> Generator[None]:
    """Let what these functions return be another tensor than what they are given."""
    functional: Any = torch.nn.functional
    before = {name: getattr(functional, name) for name in _HANDED_BACK}
    for name, function in before.items():
        setattr(functional, name, _on_an_alias(function))
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(functional, name, function)


def _on_an_alias(function: Any) -> Any:
    def call(input: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:  # noqa: A002  # torch's name
        return function(torch.ops.aten.alias.default(input), *args, **kwargs)

    return call


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Keep torch's own report of a failed trace off the terminal: ours names the line and the
    remedy.
    """
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # torch prints the graph so far
            yield
    finally:
        logging.disable(before)


# --- failed traces --------------------------------------------------------------------------------

_DATA = re.compile(r"DataDependent|data-dependent|item\(\)|Sym(Bool|Int|Float)")


def _explain(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], error: Exception
) -> str:
    """Name the module, the user's line and the remedy for a failed export."""
    name = type(model).__name__
    eager = _eager_error(model, args, kwargs)
    if eager is not None:
        where = place_of(model, walk_tb(eager.__traceback__))
        return (
            f"{name} fails on the example inputs ({_describe(args, kwargs)}){where}: "
            f"{type(eager).__name__}: {first_line(eager)}. Pass example_inputs= and "
            "example_kwargs= that its forward accepts"
        )
    where = place_of(model, walk_tb(error.__traceback__))
    if _DATA.search(f"{type(error).__name__} {error}"):
        return (
            f"{name} cannot be captured{where}: this line needs the value of a tensor, which a "
            "graph does not have. Write the choice with torch.where, or move it out of forward"
        )
    return (
        f"{name} cannot be captured{where}: {type(error).__name__}: {first_line(error)}. "
        "It runs, but torch.export cannot follow this line; rewrite it with tensor operations, or "
        "move it out of forward"
    )


def _eager_error(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Exception | None:
    """What the model itself raises on these inputs: then the trace is not to blame."""
    try:
        with torch.no_grad():
            model(*args, **kwargs)
    except Exception as error:  # the user's forward may raise anything
        return error
    return None


def _describe(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    leaves = pytree.tree_leaves((args, kwargs))
    return ", ".join(
        f"{leaf.dtype} {list(leaf.shape)}".removeprefix("torch.")
        if isinstance(leaf, torch.Tensor)
        else repr(leaf)
        for leaf in leaves
    )
