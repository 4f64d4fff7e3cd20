"""Subnets that are bound to a program: the latest ones, and in training those that come next."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from itertools import islice

import torch
from torch import nn

from nestify.dims.selection import Keep
from nestify.runtime.bound import Bound
from nestify.runtime.program import Program
from nestify.space import Subnet

__all__ = ["AHEAD", "Bindings"]

AHEAD = 16  # steps: binding them in a row takes a third of the time of one between two passes
_MOST = 64
_HALF = (torch.bfloat16, torch.float16)


class Bindings:
    """What was bound lately, by subnet, batch size, mode and precision.

    >>> bindings = Bindings(program)
    >>> bound = bindings.of(nested, subnet, batch, nested.keep)
    >>> bound is bindings.of(nested, subnet, batch, nested.keep)
    True
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self._bound: OrderedDict[tuple[Subnet, int, bool, bool, bool], Bound] = OrderedDict()
        self._batch = -1  # of the latest subnet that was bound
        self._turned = False

    @contextmanager
    def turning(self, turned: bool) -> Generator[None]:
        """In a ``with`` block, evaluations run images with their channels last, or as they lie."""
        before, self._turned = self._turned, turned
        try:
            yield
        finally:
            self._turned = before

    def of(
        self,
        root: nn.Module,
        subnet: Subnet,
        batch: int,
        keep: Callable[[Subnet], Keep],
        upcoming: Callable[[], Sequence[Subnet]] = tuple,
    ) -> Bound:
        """Bind ``subnet``, and those that come next if the batch size is that of before.

        ``keep`` says what a subnet keeps, ``upcoming`` which ones the next training steps draw.
        """
        mode = batch, root.training, self._turned and not root.training, _in_autocast()
        bound = self._bound.get((subnet, *mode))
        if bound is None:
            half = mode[-1] or any(p.dtype in _HALF for p in islice(root.parameters(), 1))
            wanted = (subnet, *upcoming()) if batch == self._batch else (subnet,)
            for one in wanted:
                if (one, *mode) not in self._bound:
                    self._bound[one, *mode] = self.program.bind(
                        keep(one), batch, pad=root.training, half=half, turn=mode[2]
                    )
            self._batch = batch
            while len(self._bound) > _MOST:
                self._bound.popitem(last=False)
            bound = self._bound[subnet, *mode]
        self._bound.move_to_end((subnet, *mode))
        return bound


def _in_autocast() -> bool:
    return torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
