"""Read a user's batches: what a loader yields becomes the arguments of one call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch.utils import _pytree as pytree

from nestify.capture.captured import Capture
from nestify.capture.example_inputs import call_in_words
from nestify.errors import UsageError
from nestify.support.module_tree import moved
from nestify.support.user_code import kind_of

__all__ = ["call_of", "flat_batches", "inputs_of"]


def inputs_of(batch: Any, device: torch.device | None = None) -> tuple[Any, ...]:
    """The model inputs of a batch: a tensor, or the first item of (inputs, labels)."""
    first = batch[0] if isinstance(batch, list | tuple) else batch
    inputs = tuple(first) if isinstance(first, list | tuple) else (first,)
    return moved(inputs, device)


def call_of(
    batch: Any, device: torch.device | None = None, keywords: Iterable[str] = ()
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and keyword inputs of a batch; ``keywords`` are those that the model takes.

    The inputs of a model that takes some end with a dict of these, or are such a dict.

    >>> call_of(((3, {"scale": 2}), "labels"), keywords=["scale"])
    ((3,), {'scale': 2})

    Raises:
        UsageError: the inputs lack them.
    """
    names = list(keywords)
    if not names:
        return inputs_of(batch, device), {}
    # Alone, (x, {...}) is a pair of inputs and labels.
    inputs = inputs_of(batch, device)
    found: Any = inputs[-1] if inputs else None
    if not isinstance(found, Mapping) or set(cast(Mapping[str, Any], found)) != set(names):
        listed = ", ".join(f"{name!r}: ..." for name in names)
        raise UsageError(
            f"the model was captured with keyword inputs {', '.join(names)}: the inputs of a "
            f"batch end with a dict of them, as ((x, {{{listed}}}), labels), or are "
            f"that dict, as {{{listed}}}; got {kind_of(found)} at the end of {len(inputs)} inputs"
        )
    return inputs[:-1], {name: found[name] for name in names}


def flat_batches(
    captured: Capture, batches: Iterable[Any] | None, device: torch.device | None = None
) -> list[list[Any]]:
    """Calibration batches as flat inputs of the graph; without any, the example inputs.

    They go to ``device``, or else to where the model was captured.

    Raises:
        UsageError: there is no batch, or one does not have the structure of the example inputs.
    """
    if batches is None:
        return [pytree.tree_leaves((captured.example_inputs, captured.example_kwargs))]
    found: list[list[Any]] = []
    for batch in batches:
        call = call_of(batch, device or captured.device, captured.example_kwargs)
        flat, spec = pytree.tree_flatten(call)
        if spec != captured.in_spec:
            raise UsageError(
                "a calibration batch must have the structure of the example inputs, "
                f"{call_in_words(captured.example_inputs, captured.example_kwargs)}; got "
                f"{call_in_words(*call)}. Several inputs are a tuple, as in ((x, y), labels)"
            )
        found.append(flat)
    if not found:
        raise UsageError("calibration data hold no batch; pass at least one batch of inputs")
    return found
