"""``torch.export`` behind one door: quiet, and with errors that name the module, the line and the
remedy.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import logging
import os
import re
import sysconfig
import warnings
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from traceback import walk_tb
from types import FrameType
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from nestify.autocasting import as_asked
from nestify.errors import CaptureError
from nestify.rules import COPIES, op_name

__all__ = [
    "align",
    "calls_of",
    "export_program",
    "first_line",
    "is_library",
    "place_of",
    "source_line",
    "without_fast_path",
]


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


def is_library(filename: str) -> bool:
    """Whether a source file is torch's, nestify's or Python's own, not the user's.

    >>> is_library(__file__), is_library("/home/me/nestify/examples/mlp.py")
    (True, False)
    """
    if filename[:1] == "<":
        return True
    installed = any(part in filename for part in _INSTALLED)
    return filename.startswith(_OWN) or (filename.startswith(_PYTHON) and not installed)


# By the folders themselves: a clone of nestify may hold the user's files, too.
_HERE = Path(__file__).parent
_OWN = tuple(
    f"{folder}{os.sep}"
    for folder in (
        _HERE,
        *((_HERE / linked).resolve() for linked in ("passes", "targets")),
        Path(torch.__file__).parent,
    )
)
_PYTHON = f"{sysconfig.get_path('stdlib')}{os.sep}"
_INSTALLED = ("site-packages", "dist-packages")


def source_line(node: fx.Node) -> str:
    """The user's own line that made ``node``, as ``file.py:12``, or an empty string."""
    found = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    own = [f"{file}:{line}" for file, line in found if not is_library(file)]
    return own[-1] if own else ""


# --- two traces of one model ----------------------------------------------------------------------


def calls_of(graph: fx.Graph) -> list[fx.Node]:
    """The calls that compute; where memory is laid out anew may differ between two traces."""
    calls = (node for node in graph.nodes if node.op == "call_function")
    return [node for node in calls if op_name(node.target) not in COPIES]


def align(
    graph: fx.Graph, other: fx.Graph
) -> tuple[list[tuple[fx.Node, fx.Node]], list[fx.Node], list[fx.Node]]:
    """Pair the calls of two traces of one model; then those that only one of them makes."""
    mine, theirs = calls_of(graph), calls_of(other)
    keys = [[(n.meta["path"], op_name(n.target)) for n in calls] for calls in (mine, theirs)]
    pairs: list[tuple[fx.Node, fx.Node]] = []
    here: list[fx.Node] = []
    there: list[fx.Node] = []
    matcher = difflib.SequenceMatcher(None, *keys, autojunk=False)
    for tag, a, b, c, d in matcher.get_opcodes():
        if tag == "equal":
            pairs += zip(mine[a:b], theirs[c:d], strict=True)
        else:
            here += mine[a:b]
            there += theirs[c:d]
    return pairs, here, there


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


def place_of(model: nn.Module, frames: Iterable[tuple[FrameType, int]]) -> str:
    """The innermost user's line of frames from the outermost on, and the module whose forward it
    is.
    """
    # By their attributes, which the stand-ins of torch.export share with the modules.
    paths = {id(vars(module)): path for path, module in model.named_modules()}
    line = module = ""
    for frame, number in frames:
        owner = _owner(frame.f_locals)
        module = paths.get(id(vars(owner)), module) if owner is not None else module
        if not is_library(frame.f_code.co_filename):
            line = f"{frame.f_code.co_filename}:{number}"
    return (f" in module {module!r}" if module else "") + (f" ({line})" if line else "")


def _owner(variables: Mapping[str, Any]) -> nn.Module | None:
    owner = variables.get("self")
    return owner if isinstance(owner, nn.Module) else None


def _describe(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    leaves = pytree.tree_leaves((args, kwargs))
    return ", ".join(
        f"{leaf.dtype} {list(leaf.shape)}".removeprefix("torch.")
        if isinstance(leaf, torch.Tensor)
        else repr(leaf)
        for leaf in leaves
    )


def first_line(error: BaseException) -> str:
    r"""What an error says first, without the full stop.

    >>> first_line(ValueError("no such op.\nmore"))
    'no such op'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else "no message"
