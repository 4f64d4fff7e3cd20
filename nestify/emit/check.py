"""How far two forms of one network are apart, and when that is too far."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nestify.emit.call import Call, random_like, tensors_of
from nestify.emit.report import first_line
from nestify.errors import VerificationError

# Outputs smaller than this are compared on this scale: relative to less, rounding is all there is
# to see.
_FLOOR = 1e-3


@dataclass(frozen=True)
class Sample:
    """One call, what the torch module answers to it, and a name for messages."""

    label: str
    call: Call
    expected: tuple[torch.Tensor, ...]


def deviation(expected: torch.Tensor, actual: torch.Tensor) -> float:
    """The largest ``|expected - actual|`` relative to the largest ``|expected|``, floored at 0.001.

    Relative to the largest entry, because an entry near zero is a difference of large ones. NaN and
    infinities must stand in the same places; integers and booleans must be equal; else the result
    is inf. Half precision is measured in the same units in the last place as float32.

    >>> deviation(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.002]))
    0.0010...
    >>> deviation(torch.tensor([1, 2]), torch.tensor([1, 3]))
    inf
    """
    if expected.shape != actual.shape or expected.dtype != actual.dtype:
        return math.inf
    if torch.equal(expected, actual) or not expected.numel():
        return 0.0
    if not expected.is_floating_point():
        return math.inf
    ulp = max(1.0, torch.finfo(expected.dtype).eps / torch.finfo(torch.float32).eps)
    a, b = expected.double(), actual.double()
    finite = a.isfinite()
    if (
        not torch.equal(a[~finite].nan_to_num(), b[~finite].nan_to_num())
        or not b[finite].isfinite().all()
    ):
        return math.inf
    if not finite.any():
        return 0.0
    scale = max(float(a[finite].abs().max()), _FLOOR)
    return float((a[finite] - b[finite]).abs().max()) / scale / ulp


def samples(model: torch.nn.Module, call: Call, batches: Sequence[int | None]) -> list[Sample]:
    """The example and a random call at each batch size, with the answers of ``model``."""
    result: list[Sample] = []
    for seed, batch in enumerate(batches):
        sized = call if batch is None else call.resized(batch)
        at = "" if batch is None else f" at batch {batch}"
        for label, one in (
            (f"example inputs{at}", sized),
            (f"random inputs{at}", random_like(sized, seed)),
        ):
            result.append(Sample(label, one, tuple(tensors_of(one.run(model)))))
    return result


def largest_error(
    what: str, run: Callable[[Call], Any], cases: Sequence[Sample], tolerance: float
) -> float:
    """The largest deviation of ``run`` over the samples.

    Raises:
        VerificationError: it is above ``tolerance``, or ``run`` fails; the message names the
        sample.
    """
    worst = 0.0
    for case in cases:
        try:
            actual = tensors_of(run(case.call))
        except Exception as error:
            raise VerificationError(
                f"{what} does not run on {case.label}: {first_line(error)}"
            ) from error
        if len(actual) != len(case.expected):
            raise VerificationError(
                f"{what} has {len(actual)} outputs on {case.label}, "
                f"the model has {len(case.expected)}; nothing was written"
            )
        for index, (a, b) in enumerate(zip(case.expected, actual, strict=True)):
            error = deviation(a, b)
            if not error <= tolerance:
                message = _mismatch(what, case.label, index, a, b, error, tolerance)
                raise VerificationError(message, error)
            worst = max(worst, error)
    return worst


def _mismatch(
    what: str,
    label: str,
    index: int,
    a: torch.Tensor,
    b: torch.Tensor,
    error: float,
    tolerance: float,
) -> str:
    forms = f"{tuple(a.shape)} {a.dtype}", f"{tuple(b.shape)} {b.dtype}"
    shapes = "" if forms[0] == forms[1] else f" (model {forms[0]}, file {forms[1]})"
    return (
        f"{what} differs from the model on {label}, output {index}: relative error {error:.2e}, "
        f"allowed {tolerance:.0e}{shapes}; nothing was written. "
        "Raise tolerance= if that is rounding, else report it"
    )
