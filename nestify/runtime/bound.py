"""A program bound to one subnet: what runs, the sizes it spells out, how it cuts the tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from nestify.dims.selection import Keep, Plan, Strided, cut, put
from nestify.runtime.steps import Frame, Read, Step
from nestify.runtime.straight_line import StraightLine

__all__ = ["Bound", "Cut", "Line"]

_USES = 4  # of a line before its function is written: that takes as long as some passes without
_EMPTY: Mapping[str, Any] = MappingProxyType({})
# In the place of a module that a tree lacks.
_NOTHING: Mapping[str, Any] = MappingProxyType(
    dict.fromkeys(("_modules", "_parameters", "_buffers"), _EMPTY)
)


class Cut(NamedTuple):
    """How one subnet cuts a tensor: by ``plan``, with ``zeros`` behind as torch's pad wants them.

    ``strided`` is the same as ``plan`` where that names first positions and grids only, ``sizes``
    are those of the result where it is a view.
    """

    plan: Plan
    zeros: Sequence[int]
    strided: Strided | None
    sizes: tuple[int, ...] | None

    @classmethod
    def by(cls, full: Sequence[int], plan: Plan, zeros: Sequence[int] = ()) -> Cut:
        """Of tensors of the shape ``full``."""
        if any(isinstance(kept, torch.Tensor) for _, kept in plan):
            return cls(plan, zeros, None, None)
        strided = Strided.of(full, plan)
        views = plan and not zeros and not strided.steps
        return cls(plan, zeros, strided, strided.sizes if views else None)

    @property
    def is_view(self) -> bool:
        """Whether the result shares memory with the tensor."""
        return self.sizes is not None or not (self.plan or self.zeros)

    def of(self, full: torch.Tensor) -> torch.Tensor:
        """Cut a tensor.

        >>> Cut.by((4,), [(0, 2)], (0, 1)).of(torch.ones(4))
        tensor([1., 1., 0.])
        """
        value = cut(full, self.plan) if self.strided is None else self.strided.cut(full)
        return F.pad(value, self.zeros) if self.zeros else value


class Line:
    """What runs of a graph where some blocks are dropped: the calls, and the tensors they read.

    All subnets with the same blocks share it.
    """

    def __init__(self, frame: Frame, steps: Sequence[Step], tensors: Sequence[Read]) -> None:
        self.steps, self.tensors = steps, tensors
        written = [i for i, read in enumerate(tensors) if read.node in frame.written]
        self._written = {
            True: written,
            False: [i for i in written if frame.written[tensors[i].node]],
        }
        self._function = StraightLine(frame, steps)
        self._uses = 0
        self._places: dict[str, int] = {"": 0}
        self._ways: list[tuple[int, str]] = []  # to each module: from which other, by which name
        self.owners = [self._place(read.name.rpartition(".")[0]) for read in tensors]

    def _place(self, path: str) -> int:
        if path not in self._places:
            above, _, name = path.rpartition(".")
            self._ways.append((self._place(above), name))
            self._places[path] = len(self._places)
        return self._places[path]

    def modules(self, root: nn.Module) -> list[Mapping[str, Any]]:
        """The attributes of the modules of ``root`` that have tensors, by their ``owners``: to find
        each by its path takes longer than a call of a small network.
        """
        found: list[Mapping[str, Any]] = [vars(root)]
        for above, name in self._ways:
            module = found[above]["_modules"].get(name)
            found.append(_NOTHING if module is None else vars(module))
        return found

    def written(self, *, in_training: bool) -> list[int]:
        """Which of the tensors calls write into."""
        return self._written[in_training]

    def function(self) -> StraightLine | None:
        """The calls as a function; None for the first uses."""
        self._uses += 1
        return self._function if self._uses > _USES else None


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class Bound:
    """A line with the sizes and cuts of one subnet and batch size, a cut for each tensor."""

    frame: Frame
    keep: Keep
    line: Line
    sizes: Sequence[int]
    cuts: Sequence[Cut]
    channels_last: bool = False

    def write_back(self, full: torch.Tensor, read: Read, plan: Plan, value: torch.Tensor) -> None:
        """Put what calls wrote into a copied slice of a buffer in its place there."""
        value = value[tuple(slice(self.keep.size(expr)) for expr in read.dims)]
        # As torch's own batch norm does, without a sign that the tensor changed: autograd saves
        # running statistics though backward does not read them, and the next step may come first.
        put(full.data, plan, value)
