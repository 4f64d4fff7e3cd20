"""The calls of a graph as steps that read and write values by slot."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

from torch import fx, nn

from nestify.capture.autocast import Block
from nestify.rules import Dims
from nestify.runtime.channels_last import Orders
from nestify.support.module_tree import submodule

__all__ = ["Frame", "Read", "Slot", "Step", "reads", "trains"]


class Slot(NamedTuple):
    """The place of a value in a pass.

    Behind those of all nodes is that of the inputs' device, then those of the sizes that calls
    spell out.
    """

    at: int


class Step(NamedTuple):
    """One call with slots for tensors: in eval, in training, and the slots that are free
    afterwards.
    """

    node: fx.Node
    out: int
    path: str
    run: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    in_training: tuple[tuple[Any, ...], Mapping[str, Any]] | None
    frees: tuple[int, ...]


class Frame(NamedTuple):
    """What all subnets of a graph have in common.

    ``written`` are the buffers that some call writes into, with whether one does so in eval too,
    ``ordered`` the calls that want their operands in the memory order of the trace, with these
    orders, ``blocks`` those of autocast by
    the calls in them (those without a type of devices follow the inputs), ``followed`` the modules
    whose mode some call follows.
    """

    slots: Mapping[fx.Node, int]
    inputs: Sequence[fx.Node]
    outputs: Sequence[Any]
    written: Mapping[fx.Node, bool]
    ordered: Mapping[fx.Node, Orders]
    blocks: Mapping[fx.Node, Sequence[Block]]
    followed: Sequence[str]

    def modes(self, root: nn.Module) -> list[bool]:
        """Whether each of the modules that some call follows is in training."""
        return [trains(root, path) for path in self.followed]


class Read(NamedTuple):
    """A tensor of the model that steps read: its name in its module, in which ``registry`` of that
    the trace had it, and the slot of its ``last`` reader.
    """

    node: fx.Node
    out: int
    name: str
    leaf: str
    registry: str
    dims: Dims
    last: int


def reads(value: Any) -> Iterator[int]:
    """The slots that an argument names."""
    if value.__class__ is Slot:
        yield value.at
    elif isinstance(value, Mapping):
        yield from reads(tuple(cast(Mapping[str, Any], value).values()))
    elif isinstance(value, list | tuple):
        for item in cast(Sequence[Any], value):
            yield from reads(item)


def trains(root: nn.Module, path: str) -> bool:
    """Whether the module that makes a call is in training; the root for a path that is gone."""
    return (submodule(root, path) or root).training
