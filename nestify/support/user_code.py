"""Run the user's code so that its failures show as theirs: message and line, no traceback."""

from __future__ import annotations

import traceback
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from nestify.errors import CaptureError, NestifyError

_INSTALLED = ("<frozen", "site-packages", "dist-packages", str(Path(torch.__file__).parent))
_LIBRARIES = (str(Path(__file__).parent), str(Path(traceback.__file__).parent))


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
    theirs = [f for f in traceback.extract_tb(error.__traceback__) if is_theirs(f.filename)]
    if not theirs:
        return said
    last = theirs[-1]
    return f"{said} ({Path(last.filename).name}:{last.lineno}: {(last.line or '').strip()})"


def is_theirs(filename: str) -> bool:
    """Whether a file is the user's: neither nestify's nor of an installed or standard library.

    Example:
        >>> is_theirs("/home/me/train.py"), is_theirs(__file__)
        (True, False)
    """
    return not filename.startswith(_LIBRARIES) and not any(o in filename for o in _INSTALLED)
