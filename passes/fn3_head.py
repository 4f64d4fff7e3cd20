"""Ordered dropout over attention heads: FN3's ordered blocks, a head being the block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nestify.passes.ordered_dropout import OrderedDropout

__all__ = ["Fn3Head"]


@dataclass(frozen=True, slots=True)
class Fn3Head(OrderedDropout):
    """Units are the groups of kind ``head``."""

    name: ClassVar[str] = "fn3-head"
    kind: ClassVar[str] = "head"
    where: str = "all"
