"""Ordered dropout over the channels of convolutional layers (FN3, section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nestify.passes.ordered_dropout import OrderedDropout

__all__ = ["Fn3Channel"]


@dataclass(frozen=True, slots=True)
class Fn3Channel(OrderedDropout):
    """Units are the groups of kind ``channel``."""

    name: ClassVar[str] = "fn3-channel"
    kind: ClassVar[str] = "channel"
