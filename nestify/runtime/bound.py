"""A program bound to one subnet: the steps to run, the sizes they spell, the tensors they read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import fx

from nestify.dims.selection import Keep, Plan
from nestify.rules import Dims
from nestify.runtime.steps import Frame, Step
from nestify.runtime.straight_line import StraightLine

__all__ = ["Bound", "Read"]


class Read(NamedTuple):
    """A tensor of the model as one subnet reads it.

    ``plan`` cuts it, ``zeros`` are put behind it as torch's pad wants them, ``last`` is the slot of
    its last reader.
    """

    node: fx.Node
    out: int
    name: str
    dims: Dims
    plan: Plan
    zeros: Sequence[int]
    last: int

    def cut_as(self, plan: Plan, zeros: Sequence[int]) -> Read:
        """The same with another cut and other zeros."""
        return Read(self.node, self.out, self.name, self.dims, plan, zeros, self.last)


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class Bound:
    """A program with the sizes and slices of one subnet and batch size, and the tensors that it
    reads. ``line`` runs ``steps``, which all subnets with the same blocks share.
    """

    frame: Frame
    keep: Keep
    steps: Sequence[Step]
    line: StraightLine
    sizes: Sequence[int]
    tensors: Sequence[Read]
    channels_last: bool = False
