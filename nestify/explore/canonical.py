"""Subnets that are one network: they differ only inside of blocks that both drop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.utils import _pytree as pytree

from nestify.dims import all_dims
from nestify.graph.liveness import bypassed, live_nodes
from nestify.space import Subnet

if TYPE_CHECKING:
    from nestify.nested.model import NestedModel

__all__ = ["Alike"]


class Alike:
    """Gives one subnet for all that are the same network: units that dropped blocks hold are at
    their least.

    >>> alike = Alike(nested)
    >>> alike(nested.space.largest()) == nested.space.largest()
    True
    """

    def __init__(self, nested: NestedModel) -> None:
        self._nested = nested
        presences = {block.presence for block in nested.graph.droppable}
        moves = nested.graph.moves.items()
        self._depths = [name for name, moved in moves if presences & moved.keys()]
        self._widths = {name: moved for name, moved in moves if not presences & moved.keys()}
        self._absent: dict[tuple[int, ...], dict[str, int]] = {}  # by the depths

    def __call__(self, subnet: Subnet) -> Subnet:
        """The one that stands for ``subnet``, which names every unit."""
        depths = tuple(subnet[name] for name in self._depths)
        if depths not in self._absent:
            self._absent[depths] = self._least(subnet)
        absent = self._absent[depths]
        return Subnet({**subnet, **absent}) if absent else subnet

    def _least(self, subnet: Subnet) -> dict[str, int]:
        """The least sizes of the units that nothing computes with at these depths."""
        graph, units = self._nested.graph, self._nested.space.by_name
        bypass = bypassed(graph, self._nested.keep(subnet)) if self._depths else {}
        if not bypass:
            return {}
        live = live_nodes(graph, bypass)
        there = all_dims(pytree.tree_leaves([graph.dims.get(node, ()) for node in live]))
        return {
            name: units[name].minimum
            for name, moved in self._widths.items()
            if not any(dim in there for dim in moved)
        }
