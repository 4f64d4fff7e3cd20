"""Blocks of a model under `torch.autocast`: on, or off where the rest may train under it, as the
positions of a rotary embedding must.

A trace hands such a block on as a graph of its own. Its calls stand among the others here, each
with the blocks that it is in; where they run, autocast is as it is there.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import fx

__all__ = ["ENTER", "EXIT", "Block", "BlockWriter", "as_asked", "blocks_of", "inside", "place_in"]

# The names by which torch.fx itself writes the two ends of a block; they have no public ones.
ENTER: Any = vars(torch.amp)["_enter_autocast"]
EXIT: Any = vars(torch.amp)["_exit_autocast"]

_KEY = "autocast"


class Block(NamedTuple):
    """Autocast on devices of one type, as the arguments of `torch.autocast` say."""

    device_type: str
    dtype: torch.dtype | None = None
    enabled: bool = True

    def around(self, blocks: tuple[Block, ...]) -> tuple[Block, ...]:
        """This block in the others: of those for one type of devices the inner one counts."""
        return (*(b for b in blocks if b.device_type != self.device_type), self)


def place_in(node: fx.Node, blocks: tuple[Block, ...]) -> None:
    """Note which blocks ``node`` runs in."""
    if blocks:
        node.meta[_KEY] = blocks


def blocks_of(node: fx.Node) -> tuple[Block, ...]:
    """The blocks that a call is in, at most one for a type of devices.

    >>> blocks_of(fx.Graph().placeholder("x"))
    ()
    """
    return node.meta.get(_KEY, ())


def inside(blocks: Iterable[Block]) -> ExitStack:
    """A context in which autocast is as in these blocks; those for a GPU are left out without one.

    >>> with torch.autocast("cpu"), inside([Block("cpu", enabled=False)]):
    ...     (torch.ones(1, 1) @ torch.ones(1, 1)).dtype
    torch.float32
    """
    stack = ExitStack()
    for kind, dtype, enabled in blocks:
        if kind != "cuda" or torch.cuda.is_available():
            stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=enabled))
    return stack


@contextlib.contextmanager
def as_asked() -> Generator[None]:
    """Let a trace see the blocks for a GPU as they were asked for: where there is none, torch turns
    them off, and a model that is captured there would compute otherwise on a GPU.
    """
    kind: Any = torch.autocast
    made = kind.__init__

    def make(block: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made(block, device_type, *args, **kwargs)
        asked = args[1] if len(args) > 1 else kwargs.get("enabled", True)
        if device_type == "cuda":
            block._enabled = asked

    kind.__init__ = make
    try:
        yield
    finally:
        kind.__init__ = made


class BlockWriter:
    """Writes calls into ``graph`` with their blocks around them, in which neighbours share one.

    ``place`` gives for a type of devices what names it in that graph: itself, or a node.
    """

    def __init__(self, graph: fx.Graph, place: Callable[[str], Any]) -> None:
        self._graph, self._place = graph, place
        self._blocks: tuple[Block, ...] = ()
        self._open: list[fx.Node] = []

    def move_to(self, blocks: tuple[Block, ...]) -> None:
        """Go on in these blocks, or with () in none."""
        if blocks == self._blocks:
            return
        while self._open:
            self._graph.call_function(EXIT, (self._open.pop(),))
        places = [self._place(block.device_type) for block in blocks]
        for place, block in zip(places, blocks, strict=True):
            arguments = (place, block.dtype, block.enabled, None)
            self._open.append(self._graph.call_function(ENTER, arguments))
        self._blocks = blocks
