"""Ordered dropout over the paths of grouped convolutions (FN3, section 4: ResNeXt)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nestify.passes.ordered_dropout import OrderedDropout

__all__ = ["Fn3Path"]


@dataclass(frozen=True, slots=True)
class Fn3Path(OrderedDropout):
    """Units are the groups of kind ``path``."""

    name: ClassVar[str] = "fn3-path"
    kind: ClassVar[str] = "path"
    where: str = "all"
