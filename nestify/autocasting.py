"""Blocks under ``autocast(enabled=False)``: what a model computes there stays in its own precision
when the network trains under autocast, as the positions of a rotary embedding must.

A trace hands such a block on as a graph of its own. Its calls stand among the others here, each
with the types of devices on which it is exempt; where they run, autocast is off around them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import fx

__all__ = ["ENTER", "EXIT", "Blocks", "exempt", "exempted", "without_autocast"]

# The names by which torch.fx itself writes the two ends of a block; they have no public ones.
ENTER: Any = vars(torch.amp)["_enter_autocast"]
EXIT: Any = vars(torch.amp)["_exit_autocast"]

_KEY = "exempt"


def exempt(node: fx.Node, types: tuple[str, ...]) -> None:
    """Note that autocast is off on devices of these types where ``node`` runs."""
    if types:
        node.meta[_KEY] = types


def exempted(node: fx.Node) -> tuple[str, ...]:
    """The types of devices on which autocast is off for a call.

    >>> exempted(fx.Graph().placeholder("x"))
    ()
    """
    return node.meta.get(_KEY, ())


def without_autocast(types: Iterable[str]) -> ExitStack:
    """A context in which autocast is off on devices of these types.

    >>> with torch.autocast("cpu"), without_autocast(["cpu"]):
    ...     (torch.ones(1, 1) @ torch.ones(1, 1)).dtype
    torch.float32
    """
    stack = ExitStack()
    for device_type in types:
        stack.enter_context(torch.autocast(device_type, enabled=False))
    return stack


class Blocks:
    """Writes calls into ``graph`` with their blocks around them, in which neighbours share one.

    ``place`` gives for a type of devices what names it in that graph: itself, or a node.
    """

    def __init__(self, graph: fx.Graph, place: Callable[[str], Any]) -> None:
        self._graph, self._place = graph, place
        self._types: tuple[str, ...] = ()
        self._open: list[fx.Node] = []

    def move_to(self, types: tuple[str, ...]) -> None:
        """Go on in a block that exempts devices of these types, or in none."""
        if types == self._types:
            return
        while self._open:
            self._graph.call_function(EXIT, (self._open.pop(),))
        for named in [self._place(device_type) for device_type in types]:
            self._open.append(self._graph.call_function(ENTER, (named, None, False, None)))
        self._types = types
