"""The error family: one message that says what, where and what to do; one exit code a kind."""

from __future__ import annotations

import math

__all__ = ["first_line"]


class NestifyError(Exception):
    """Base of every error that nestify raises on purpose.

    ``str(error)`` is one message for a person: what went wrong, the value or node, the user's
    source line where there is one, and what to do. ``exit_code`` is what the command line returns
    for it.
    """

    exit_code = 1


class UsageError(NestifyError):
    """A wrong argument: an unknown recipe, a subnet out of range, a file without a model."""

    exit_code = 2


class CaptureError(NestifyError):
    """The model cannot be captured or served."""

    exit_code = 3


class VerificationError(NestifyError):
    """Two forms of one network that must agree do not.

    ``error`` is the relative error between them, infinite where none was measured.
    """

    exit_code = 4

    def __init__(self, message: str, error: float = math.inf) -> None:
        super().__init__(message)
        self.error = error


class InfeasibleError(NestifyError):
    """No subnet meets the constraints; the message names the closest feasible value."""

    exit_code = 5


class ArtifactError(NestifyError):
    """A file read from outside is malformed, of an unknown version, or unsafe."""

    exit_code = 6


class NestifyWarning(UserWarning):
    """Something of the model that the result leaves out; the message names the module and source
    line.
    """


def first_line(error: BaseException) -> str:
    r"""What an error says first, without the full stop.

    >>> first_line(ValueError("no such op.\nmore"))
    'no such op'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else "no message"
