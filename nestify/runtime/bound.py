"""A program bound to one subnet: what runs, the sizes it spells out, how it cuts the tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from nestify.dims.selection import Keep, Plan, put
from nestify.runtime.steps import Frame, Read, Step
from nestify.runtime.straight_line import StraightLine
from nestify.runtime.tensor_reader import Cut, TensorReader

__all__ = ["Bound", "Line"]


class Line:
    """What runs of a graph where some blocks are dropped: the calls, and the tensors they read.

    Attributes:
        run: the calls as a function.
        read: a function that cuts the tensors.
    """

    def __init__(self, frame: Frame, steps: Sequence[Step], tensors: Sequence[Read]) -> None:
        self.steps, self.tensors = steps, tensors
        self.written = [i for i, read in enumerate(tensors) if read.node in frame.written]
        self.run, self.read = StraightLine(frame, steps), TensorReader(tensors)


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class Bound:
    """A line with the sizes and cuts of one subnet and batch size, a cut for each tensor."""

    frame: Frame
    keep: Keep
    line: Line
    sizes: Sequence[int]
    cuts: Sequence[Cut]
    channels_last: bool = False

    @property
    def steps(self) -> Sequence[Step]:
        """The calls in order."""
        return self.line.steps

    def reads(self) -> Iterator[tuple[Read, Cut]]:
        """The tensors, each with its cut."""
        return zip(self.line.tensors, self.cuts, strict=True)

    def copied(self, *, turned: bool) -> list[tuple[Read, Plan]]:
        """The tensors that calls write into, where they do so in a copy, and how it was cut."""
        found: list[tuple[Read, Plan]] = []
        for i in self.line.written:
            read, cut = self.line.tensors[i], self.cuts[i]
            if not cut.is_view or (turned and len(read.dims) == 4):
                found.append((read, cut.plan))
        return found

    def write_back(self, full: torch.Tensor, read: Read, plan: Plan, value: torch.Tensor) -> None:
        """Put what calls wrote into a copied slice of a buffer in its place there."""
        value = value[tuple(slice(self.keep.size(expr)) for expr in read.dims)]
        # As torch's own batch norm does, without a sign that the tensor changed: autograd saves
        # running statistics though backward does not read them, and the next step may come first.
        put(full.data, plan, value)
