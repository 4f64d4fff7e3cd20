"""What a deployment target is: a name, the alignment it likes, and a way to time a model.

A target predicts or measures; it rewrites no graph and knows no search.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    Measure = Callable[[nn.Module, Sequence[Any], Mapping[str, Any] | None], float]


@dataclass(frozen=True)
class Target:
    """A device and runtime to plan for.

    Example:
        >>> from nestify.targets import load_target
        >>> latency_ms = load_target("cpu").measure(model, (x,), None)
        >>> latency_ms > 0
        True

    Attributes:
        name: what ``--target`` says.
        description: one line for people: what is measured, and how.
        step: the multiple of units the device wants (1: any size is as good as another).
        measure: ``(model, example_inputs, example_kwargs) -> latency_ms`` of one forward pass.
        lacks: ``() -> what this machine lacks to measure``, in words; empty where nothing.
    """

    name: str
    description: str
    step: int
    measure: Measure
    lacks: Callable[[], str] = str
