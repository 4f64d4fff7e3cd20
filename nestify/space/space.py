"""The search space: units (one independent choice each) and subnets (one choice per unit)."""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from nestify.errors import UsageError
from nestify.space.subnet import Subnet, is_size
from nestify.space.unit import Unit
from nestify.support.arguments import check, instance

__all__ = ["SearchSpace"]


_SIZES = instance("sizes by unit, as a dict, or as space.at(share) gives them", Mapping)


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
