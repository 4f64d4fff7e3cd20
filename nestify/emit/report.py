"""What an export says about itself: one frozen report, and one category for its warnings."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from logging import ERROR, getLogger
from pathlib import Path

_CHATTY = ("onnx_ir", "onnxscript", "torch.onnx", "torch.export", "torch.fx")


class ExportWarning(UserWarning):
    """An export that stands, but not in every point as asked; the message says in which."""


@dataclass(frozen=True)
class ExportReport:
    """What was written, how it was checked, and with what error.

    ``error`` is the largest deviation that was measured (see
    :func:`nestify.emit.check.deviation`) over ``checked_batches``, on the example inputs and on
    random ones. ``warnings`` repeats what was warned of.

    >>> from pathlib import Path
    >>> report = ExportReport(kind="onnx", path=Path("slim.onnx"), files=(), size_bytes=5120,
    ...                       error=2e-7, tolerance=1e-5, free_batch=True, checked_batches=(2, 3))
    >>> print(report)
    slim.onnx: onnx, 5,120 bytes, free batch, largest error 2.0e-07 (allowed 1.0e-05)
    """

    kind: str
    path: Path
    files: tuple[Path, ...]
    size_bytes: int
    error: float
    tolerance: float
    free_batch: bool
    checked_batches: tuple[int, ...]
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    simplified: bool = False
    nodes: int = 0
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        batch = "free batch" if self.free_batch else "fixed batch"
        return (
            f"{self.path}: {self.kind}, {self.size_bytes:,} bytes, {batch}, "
            f"largest error {self.error:.1e} (allowed {self.tolerance:.1e})"
        )


@contextmanager
def quiet() -> Generator[None]:
    """Silence the deprecation notes and progress logs of the exporters while their code runs.

    They speak of the exporters' own insides: nothing a user could act on, and an error in a program
    that turns warnings into errors.

    >>> with quiet():
    ...     warnings.warn("from a dependency", stacklevel=1)
    """
    levels = {name: getLogger(name).level for name in _CHATTY}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in _CHATTY:
            getLogger(name).setLevel(ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                getLogger(name).setLevel(level)


def first_line(error: BaseException) -> str:
    r"""The first line that an exception says, or its type where it says nothing.

    >>> first_line(ValueError("no such op\nmore"))
    'no such op'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
