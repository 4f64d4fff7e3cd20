"""Evaluators: the user's function on one subnet, whole or batch by batch.

``evaluate(model) -> float`` scores a subnet in one part. ``evaluate(model, batch)`` gives the score
of each sample of a batch, so that its parts are the batches and a race may stop early; the score of
the subnet is the mean over all samples. BatchNorm statistics are re-estimated first where
calibration batches are given.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from nestify.errors import UsageError
from nestify.explore.function_hash import codeprint
from nestify.explore.protocol import Samples
from nestify.runtime.tensor_identity import Snapshot, bits, place, readable
from nestify.support.module_tree import modules_in
from nestify.support.user_code import kind_of, user_code

if TYPE_CHECKING:
    from nestify.nested.model import NestedModel
    from nestify.space import Subnet

__all__ = ["Evaluator"]

# What conversion raises: of other types and texts, of numbers too large, of tensors without values.
_NO_NUMBERS = (TypeError, ValueError, OverflowError, RuntimeError)


class Evaluator:
    """Scores subnets of ``nested`` by the user's function.

    >>> evaluator = Evaluator(nested, lambda model: 0.93)
    >>> evaluator.run(nested.space.largest(), 0)
    array([0.93])

    Args:
        nested: what is scored.
        function: ``evaluate(model) -> float``, or with ``batches`` ``evaluate(model, batch)``.
        batches: the data of a function of two arguments.
        calibrate: batches from which each subnet's BatchNorm statistics are re-estimated.
        name: stands in for a hash of the function and its data, to know stored scores again; how
            the data are split stays a part of that.
        reuse_bytes: how much memory may hold activations that subnets share; 0 for none, and for
            images in the layout that the user has.
    """

    def __init__(
        self,
        nested: NestedModel,
        function: Callable[..., Any],
        batches: Iterable[Any] | None = None,
        calibrate: Iterable[Any] | None = None,
        *,
        name: str | None = None,
        reuse_bytes: int = 0,
    ) -> None:
        self.nested = nested
        self.function = function
        self.batches = None if batches is None else _held(batches, "batches")
        self.calibrate = None if calibrate is None else _held(calibrate, "calibrate")
        self.name = name
        self.reuse_bytes = reuse_bytes
        self._left: dict[int, list[Hashable]] = {}  # what the function made of batches, by part

    @property
    def parts(self) -> int:
        """In how many parts a subnet is scored."""
        return 1 if self.batches is None else len(self.batches)

    @cached_property
    def fingerprint(self) -> str:
        """Tells stored scores of this function on these data from others; taken once.

        Raises:
            UsageError: the function or the data have a state that cannot be told.
        """
        judged: Any = self.name
        if self.name is None:
            judged = codeprint((self.function, self.batches))
        elif self.batches is not None:  # scores are kept by batch: those of one split
            judged = self.name, [_extent(batch) for batch in self.batches]
        return codeprint((judged, self.calibrate, getattr(self.nested, "scaling", "none")))

    def reusing(self) -> AbstractContextManager[Any]:
        """A context in which subnets that begin alike share activations, and images run with their
        channels last; with no memory for that they run as the user's own call does.
        """
        if not self.reuse_bytes:
            return nullcontext()
        return self.nested.reusing(limit_bytes=self.reuse_bytes, turned=True)

    def timed(self, subnet: Mapping[str, int], part: int) -> tuple[Samples, float]:
        """`run`, and the seconds that it took."""
        start = time.perf_counter()
        samples = self.run(self.nested.space.complete(subnet), part)
        return samples, time.perf_counter() - start

    def run(self, subnet: Subnet, part: int) -> Samples:
        """The scores of one part: of each sample of a batch, or of the subnet as a whole.

        Raises:
            UsageError: the function gives no finite number, or not one for each sample, or it
                changed the weights or its data.
            CaptureError: the function failed; the message shows its line.
        """
        if self.calibrate is not None and not self.nested.is_calibrated(subnet):
            with user_code("calibrate=, batches of inputs such as [x],"):
                self.nested.calibrate(subnet, self.calibrate)
        if any(module.training for module in modules_in(self.nested)):
            self.nested.eval()  # a function has left it in training mode
        _ = self._weights  # as they are before the function sees them
        with self.nested.activate(subnet):
            if self.batches is None:
                with user_code("evaluate(model)"):
                    value = self.function(self.nested)
            else:
                value = self._of_batch(self.batches[part], part)
        self.check_weights()
        return np.array([_number(value)]) if self.batches is None else _samples(value)

    def _of_batch(self, batch: Any, part: int) -> Any:
        """What the function gives for a batch, which the next subnet must find as this one did.

        What is written once and then stays, as by a layer that works in place, is no change.
        """
        before = _tensors(batch)
        places = [place(tensor) for tensor in before]
        with user_code("evaluate(model, batch)"):
            value = self.function(self.nested, batch)
        after = _tensors(batch)
        if [place(tensor) for tensor in after] != places:
            left = [bits(tensor) for tensor in after]
            if self._left.setdefault(part, left) != left:
                raise UsageError(
                    f"evaluate changed batch {part} each time it got it, so that every subnet "
                    "would be scored on other data: let it work on a copy of what it changes"
                )
        return value

    @cached_property
    def _weights(self) -> Snapshot:
        return Snapshot(self.nested)

    def check_weights(self, *, closely: bool = False) -> None:
        """Raise UsageError where the function changed the weights since the first run.

        ``closely`` also sees what leaves no sign, at the cost of reading all weights.
        """
        changed = self._weights.changed(self.nested, closely=closely)
        if changed is not None:
            raise UsageError(
                f"evaluate changed the weights of the model ({changed!r}), so that the scores of "
                "other subnets would be of another network: let it change a network of its own, "
                "such as model.extract(model.active)"
            )


def _held(batches: Iterable[Any], name: str) -> Sequence[Any]:
    with user_code(f"{name}="):
        held = batches if isinstance(batches, list | tuple) else list(batches)
    if not held:
        raise UsageError(f"{name}= holds no batch; pass at least one")
    return held


def _extent(batch: Any) -> list[str]:
    """How many samples a batch holds, as far as that can be seen: the shapes of all in it."""
    return [str(getattr(leaf, "shape", None)) for leaf in _leaves(batch)]


def _tensors(batch: Any) -> list[torch.Tensor]:
    leaves = _leaves(batch)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and readable(leaf)]


def _leaves(batch: Any) -> list[Any]:
    return pytree.tree_leaves(dict(batch) if isinstance(batch, Mapping) else batch)


def _number(value: object) -> float:
    try:
        if isinstance(value, str | bytes):
            raise TypeError
        score = float(value)  # pyright: ignore[reportArgumentType]
    except _NO_NUMBERS:
        raise UsageError(f"evaluate(model) must return a number, not {kind_of(value)}") from None
    if not math.isfinite(score):
        raise UsageError(f"evaluate(model) must return a finite number, not {score}")
    return score


def _plain(values: Any) -> Any:
    """Tensors as arrays, also those in a list."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return (values if values.is_complex() else values.double()).numpy()
    return [_plain(value) for value in values] if isinstance(values, list | tuple) else values


def _samples(values: Any) -> Samples:
    """The scores of a batch, one a sample."""
    what = "evaluate(model, batch) must return the score of each sample"
    try:
        given = np.asarray(_plain(values))
        if given.dtype.kind not in "biufO":  # texts and complex numbers are no scores
            raise TypeError
        found = given.astype(np.float64)
    except _NO_NUMBERS:
        raise UsageError(f"{what}, not {kind_of(values)}") from None
    if found.ndim != 1 or not len(found):
        raise UsageError(
            f"{what}, a tensor of one dim; got shape {found.shape}. A function of the model alone "
            "takes no batches="
        )
    if not np.isfinite(found).all():
        raise UsageError(
            f"{what}, finite numbers; sample {int(np.isfinite(found).argmin())} is not"
        )
    return found
