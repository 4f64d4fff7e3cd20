"""Run the user's code so that its failures show as theirs: message and line, no traceback."""

from __future__ import annotations

import traceback
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from nestify.errors import CaptureError, NestifyError


def kind_of(value: Any) -> str:
    """Name what ``value`` is, for an error message.

    Example:
        >>> kind_of(3), kind_of(None)
        ('an int', 'None')
    """
    if value is None:
        return "None"
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


@contextmanager
def user_code(where: str) -> Generator[None]:
    """Turn an exception of the user's code into one message that shows the user's line."""
    try:
        yield
    except NestifyError:
        raise
    except (Exception, SystemExit) as error:
        raise CaptureError(f"{where} failed: {describe(error)}") from error


def describe(error: BaseException) -> str:
    """Say in one line what ``error`` is and which line of the user's code raised it.

    Example:
        >>> describe(ValueError("no such depth"))
        'ValueError: no such depth'
    """
    text = str(error).strip().splitlines()
    said = f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
    if isinstance(error, SyntaxError) and error.filename:
        return f"{type(error).__name__}: {error.msg} ({Path(error.filename).name}:{error.lineno})"
    ours = str(Path(__file__).parent)
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [f for f in frames if _is_theirs(f.filename, ours)]
    if not theirs:
        return said
    last = theirs[-1]
    return f"{said} ({Path(last.filename).name}:{last.lineno}: {(last.line or '').strip()})"


def _is_theirs(filename: str, ours: str) -> bool:
    outside = ("<frozen", "site-packages", str(Path(torch.__file__).parent))
    standard = str(Path(traceback.__file__).parent)
    return not filename.startswith((ours, standard)) and not any(o in filename for o in outside)
