"""The records of an analysed graph: groups, fixed dims, residual blocks, changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from nestify.dims import Dim

__all__ = ["Block", "Change", "Coverage", "DimGroup", "FixedDim", "Site"]


class Site(NamedTuple):
    """One place where a group lives: a parameter or buffer by name, and the position of the dim."""

    tensor: str
    dim: int


@dataclass(frozen=True, slots=True)
class DimGroup:
    """One elastic dim with all its sites: slicing it slices every site alike.

    ``kind`` is ``channel``, ``neuron``, ``head`` or ``path``.
    """

    name: str
    size: int
    kind: str
    sites: tuple[Site, ...]
    dim: Dim


@dataclass(frozen=True, slots=True)
class FixedDim:
    """A dim that could not be made elastic, the op and source line that fixed it, why, and what
    would free it.
    """

    size: int
    sites: tuple[Site, ...]
    reason: str
    op: str
    node: str
    source_line: str
    kind: str
    advice: str


@dataclass(frozen=True, slots=True)
class Block:
    """A residual block, the sum ``exit`` of ``f(entry)`` and of what ``stays`` without ``f``.

    What stays is the entry, or a projection of it. ``presence`` is a Dim of size 1 that a subnet
    keeps none of where it drops the block.
    """

    name: str
    entry: str
    exit: str
    stays: str
    presence: Dim


@dataclass(frozen=True, slots=True)
class Change:
    """What a rewrite pass did at one place of the model, or left undone there, and why.

    ``where`` is the path of the module, ``done`` whether anything changed, ``preserves`` whether
    the network computes the same as before, at the same cost.
    """

    recipe: str
    where: str
    what: str
    done: bool = True
    preserves: bool = False


class Coverage(NamedTuple):
    """Shares, 0 to 1, of the parameters and of the MACs that touch at least one elastic dim."""

    params: float
    macs: float
