"""The search space: units (one independent choice each) and subnets (one choice per unit)."""

from __future__ import annotations

import difflib
import json
import math
import numbers
from bisect import bisect_right
from collections.abc import ItemsView, Iterator, Mapping, Sequence, ValuesView
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, overload

import torch

from nestify.errors import ArtifactError, UsageError
from nestify.valid import check, instance

__all__ = ["SearchSpace", "Subnet", "Unit", "is_size"]

_SIZES = instance("sizes by unit, as a dict, or as space.at(share) gives them", Mapping)


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


class Choices(Sequence[int]):
    """The legal sizes of a unit, ascending: worked out as they are asked for, as there may be many.

    >>> list(Choices(8, 20, 8)), Choices(1, 50_000, 1)[-1]
    ([8, 16, 20], 50000)
    """

    __slots__ = ("_multiples", "_size", "_smallest")

    def __init__(self, minimum: int, size: int, step: int) -> None:
        self._smallest, self._size = minimum, size
        self._multiples = range((minimum // step + 1) * step, size, step)

    def __len__(self) -> int:
        return 1 + len(self._multiples) + (self._size > self._smallest)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[int, ...]: ...
    def __getitem__(self, index: int | slice) -> int | tuple[int, ...]:
        places = range(len(self))[index]
        if isinstance(places, range):
            return tuple(self[i] for i in places)
        if places == 0:
            return self._smallest
        return self._multiples[places - 1] if places <= len(self._multiples) else self._size

    def __contains__(self, size: object) -> bool:
        return size in (self._smallest, self._size) or size in self._multiples

    def __repr__(self) -> str:
        return repr(tuple(self))

    def at_most(self, size: float) -> int:
        """The largest legal size that is not above ``size``, or else the smallest."""
        return self[max(0, bisect_right(self, size) - 1)]

    def nearest(self, size: float) -> int:
        """The legal size closest to ``size``; of two as close, the larger."""
        above = bisect_right(self, size)
        near = self[max(0, above - 1) : above + 1]
        return min(reversed(near), key=lambda choice: abs(choice - size))


_choices = lru_cache(maxsize=4096)(Choices)  # a training step asks for those of each unit


@dataclass(frozen=True, slots=True)
class Unit:
    """One independent choice: a size from ``minimum`` up to ``size`` in steps of ``step``.

    ``kind`` is ``channel``, ``neuron``, ``head``, ``path``, ``layer``, ``bit`` or ``level``;
    ``draw`` names how training draws the size (:mod:`nestify.draws`).

    >>> Unit("conv1", "channel", 20, 8, 8).choices
    (8, 16, 20)
    """

    name: str
    kind: str
    size: int
    minimum: int = 1
    step: int = 1
    draw: str = field(default="mixture", repr=False)

    @property
    def choices(self) -> Choices:
        """Legal sizes, ascending: the minimum, multiples of the step above it, the full size."""
        return _choices(self.minimum, self.size, self.step)

    def nearest(self, size: float) -> int:
        """The legal size closest to ``size``; of two as close, the larger."""
        return self.choices.nearest(size)


@dataclass(frozen=True)
class SearchSpace:
    """All units of a nested model.

    >>> space = SearchSpace((Unit("a", "channel", 8), Unit("b", "head", 3)))
    >>> space.num_subnets, space.at(0.5)
    (24, Subnet({'a': 4, 'b': 2}))
    """

    units: tuple[Unit, ...]

    @cached_property
    def by_name(self) -> dict[str, Unit]:
        """Units by their names."""
        return {unit.name: unit for unit in self.units}

    @property
    def num_subnets(self) -> int:
        """Exact number of subnets: the product of the choices of each unit."""
        return math.prod(len(unit.choices) for unit in self.units)

    def largest(self) -> Subnet:
        """The subnet of all full sizes."""
        return Subnet({unit.name: unit.size for unit in self.units})

    def smallest(self) -> Subnet:
        """The subnet of all minimal sizes."""
        return Subnet({unit.name: unit.minimum for unit in self.units})

    def at(self, size: float) -> Subnet:
        """The subnet with the share ``size`` of every unit, 0 < size <= 1, to the nearest one."""
        if not isinstance(size, numbers.Real) or not 0 < size <= 1:
            raise UsageError(f"size is a share of every unit, 0 < size <= 1; got {size!r}")
        return Subnet({unit.name: unit.nearest(size * unit.size) for unit in self.units})

    def sample(self, generator: torch.Generator | None = None) -> Subnet:
        """Draw each unit's size uniformly and independently (FN3, section 3: p(c) = 1/M)."""
        if not self.units:
            return Subnet({})
        draws = torch.rand(len(self.units), generator=generator, dtype=torch.float64).tolist()
        choices = {unit.name: unit.choices for unit in self.units}
        return Subnet(
            {n: c[int(x * len(c))] for (n, c), x in zip(choices.items(), draws, strict=True)}
        )

    def complete(self, subnet: Mapping[str, int]) -> Subnet:
        """Fill in full sizes for the units that ``subnet`` does not name, and validate it."""
        self.validate(subnet)
        if isinstance(subnet, Subnet) and len(subnet) == len(self.units):
            return subnet
        return Subnet({unit.name: subnet.get(unit.name, unit.size) for unit in self.units})

    def validate(self, subnet: Mapping[str, int]) -> None:
        """Raise UsageError naming the unit and its range where ``subnet`` is not in this space."""
        if not isinstance(subnet, Subnet):  # a training step gives one, checked when it was made
            check("the space", {"subnet": subnet}, {"subnet": _SIZES})
        for name, size in subnet.items():
            unit = self.by_name.get(name)
            if unit is None:
                close = difflib.get_close_matches(name, self.by_name, 3)
                hint = (
                    f"did you mean {', '.join(close)}?"
                    if close
                    else f"units: {', '.join(self.by_name)}"
                )
                raise UsageError(f"no unit {name!r} in this space; {hint}")
            if not is_size(size):
                raise UsageError(f"the size of unit {name!r} must be an int, not {size!r}")
            if not unit.minimum <= size <= unit.size:
                raise UsageError(
                    f"size {size} of unit {name!r} is out of range {unit.minimum}..{unit.size}"
                )
            if size not in unit.choices:
                raise UsageError(
                    f"size {size} of unit {name!r} is no multiple of its step {unit.step}; "
                    f"the nearest legal size is {unit.nearest(size)}"
                )
