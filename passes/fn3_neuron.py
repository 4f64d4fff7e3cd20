"""Ordered dropout over the neurons of fully connected layers (FN3, section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nestify.passes.ordered_dropout import OrderedDropout

__all__ = ["Fn3Neuron"]


@dataclass(frozen=True, slots=True)
class Fn3Neuron(OrderedDropout):
    """Units are the groups of kind ``neuron``."""

    name: ClassVar[str] = "fn3-neuron"
    kind: ClassVar[str] = "neuron"
