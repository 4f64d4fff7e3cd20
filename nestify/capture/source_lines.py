"""Find the user's own source line of a node or of a running frame."""

from __future__ import annotations

import os
import re
import sysconfig
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import fx, nn

__all__ = ["is_library", "place_of", "source_line"]


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
