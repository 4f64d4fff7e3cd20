"""The score of a subnet when the user has none: how closely its outputs follow the full model's.

With d the distance of the outputs relative to the full model's (2-norms over all outputs), the
score is 1 / (1 + d): 1 for the same outputs, 1/2 when they are as far off as all zeros would be. It
is strictly decreasing in d, so it still ranks subnets that are far off, where 1 - d clipped at 0
would call all equal.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from nestify.errors import CaptureError

if TYPE_CHECKING:
    from nestify.nested.model import NestedModel


def fidelity(
    nested: NestedModel,
    example_inputs: Sequence[Any],
    example_kwargs: Mapping[str, Any] | None = None,
) -> Callable[[nn.Module], float]:
    """Return an ``evaluate`` that compares a model's outputs with those of the full one.

    Example:
        >>> evaluate = fidelity(nested, nested.example_inputs)
        >>> with nested.activate(nested.space.largest()):
        ...     evaluate(nested)
        1.0

    Args:
        nested: the nested model; its largest subnet sets the outputs to follow.
        example_inputs: the positional inputs to compare on.
        example_kwargs: the keyword inputs.

    Returns:
        A function of a model: 1 / (1 + relative distance), 0 where outputs are not finite.

    Raises:
        CaptureError: the full model gives no floating-point output, or one that is not finite.
    """
    args, kwargs = tuple(example_inputs), dict(example_kwargs or {})
    with nested.activate(nested.space.largest()):
        full = _outputs(nested, args, kwargs)
    size = _norm(full)
    if not full or not math.isfinite(size):
        what = "are not finite" if full else "hold no floating-point tensor"
        raise CaptureError(
            f"the model's outputs on the example inputs {what}, so subnets cannot be compared with "
            "it; define evaluate(model) -> float"
        )
    if size == 0:
        warnings.warn(
            "the model's outputs on the example inputs are all zero: fidelity tells nothing; "
            "define evaluate(model) -> float",
            stacklevel=2,
        )

    def evaluate(model: nn.Module) -> float:
        outputs = _outputs(model, args, kwargs)
        distance = _norm([a - b for a, b in zip(outputs, full, strict=True)])
        relative = distance / max(size, 1e-30)
        return 1.0 / (1.0 + relative) if math.isfinite(relative) else 0.0

    return evaluate


def _outputs(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[torch.Tensor]:
    with torch.no_grad():
        leaves = tree_leaves(model(*args, **kwargs))
    return [x.double() for x in leaves if isinstance(x, torch.Tensor) and x.is_floating_point()]


def _norm(tensors: Sequence[torch.Tensor]) -> float:
    return math.sqrt(sum(float(x.square().sum()) for x in tensors))
