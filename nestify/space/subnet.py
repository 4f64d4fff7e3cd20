"""A subnet: one chosen size for every unit."""

from __future__ import annotations

import json
import numbers
from collections.abc import ItemsView, Iterator, Mapping, ValuesView
from typing import Any

from nestify.errors import ArtifactError, UsageError

__all__ = ["Subnet", "is_size"]


def is_size(value: object) -> bool:
    """Whether a value is a whole number, NumPy's too, and no list or tensor of positions."""
    return type(value) is int or isinstance(value, numbers.Integral)


class Subnet(Mapping[str, int]):
    """One choice per unit: frozen, hashable, JSON. Units that are not named keep their full size.

    >>> s = Subnet({"conv1": 24})
    >>> s["conv1"], Subnet.from_json(s.to_json()) == s
    (24, True)
    """

    __slots__ = ("_items",)

    def __init__(self, sizes: Mapping[str, Any]) -> None:
        for name, size in sizes.items():
            if type(size) is not int and (isinstance(size, bool) or not is_size(size)):
                raise UsageError(f"the size of unit {name!r} must be an int, not {size!r}")
        self._items = {name: int(size) for name, size in sorted(sizes.items())}

    def __getitem__(self, name: str) -> int:
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def values(self) -> ValuesView[int]:
        """The sizes."""
        return self._items.values()

    def items(self) -> ItemsView[str, int]:
        """Units and their sizes."""
        return self._items.items()

    def __hash__(self) -> int:
        return hash(tuple(self._items.items()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Subnet) and self._items == other._items

    def __repr__(self) -> str:
        return f"Subnet({self._items})"

    def to_json(self) -> str:
        """Write it as one JSON object."""
        return json.dumps(self._items)

    @classmethod
    def from_json(cls, text: str) -> Subnet:
        """Read what :meth:`to_json` wrote; raises ArtifactError on anything else."""
        try:
            data: Any = json.loads(text)
        except ValueError as error:
            raise ArtifactError(f"not a subnet: {error}") from error
        if not isinstance(data, dict):
            raise ArtifactError(
                f"a subnet is a JSON object of unit sizes, not {type(data).__name__}"
            )
        return cls(data)
