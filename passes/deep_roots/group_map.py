"""The option ``groups``: numbers of filter groups by stage or by module, as recipe text."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from nestify.errors import UsageError
from nestify.passes.deep_roots.spatial import Spatial

__all__ = ["GroupMap"]


@dataclass(frozen=True, slots=True)
class GroupMap:
    """Stage number, module path or pattern -> number of filter groups; later entries win.

    A number is a stage where the model has that many, else the name of a module.

    >>> GroupMap.parse("0:8;layer3.*.conv2:2").entries
    {'0': 8, 'layer3.*.conv2': 2}
    """

    entries: Mapping[str, int]

    @classmethod
    def parse(cls, text: str) -> GroupMap:
        """Read ``key:number`` pairs joined by ``;``.

        Raises:
            UsageError: a pair that is not of that form.
        """
        entries: dict[str, int] = {}
        for item in filter(None, (piece.strip() for piece in text.split(";"))):
            key, colon, number = (piece.strip() for piece in item.rpartition(":"))
            if not (colon and key and number.isdigit() and int(number) > 0):
                raise UsageError(
                    f"groups={text!r}: {item!r} is not STAGE:NUMBER or NAME:NUMBER; for example "
                    "groups=0:8;1:4;conv3:1"
                )
            entries[key] = int(number)
        return cls(entries)

    def resolve(self, convs: Sequence[Spatial]) -> dict[str, int]:
        """The weight of each convolution that an entry speaks of -> its number of groups.

        Raises:
            UsageError: an entry that speaks of none; the stages and names there are listed.
        """
        found: dict[str, int] = {}
        for key, number in self.entries.items():
            hits = [c for c in convs if str(c.stage) == key] or [c for c in convs if _names(key, c)]
            if not hits:
                names = [c.name for c in convs]
                close = difflib.get_close_matches(key, names, 1)
                hint = f"did you mean {close[0]!r}? " if close else ""
                stages = sorted({c.stage for c in convs})
                raise UsageError(
                    f"groups: no stage or spatial convolution {key!r}; {hint}stages: "
                    f"{', '.join(map(str, stages)) or 'none'}; convolutions: {_shortened(names)}"
                )
            found.update({conv.weight: number for conv in hits})
        return found


def _names(key: str, conv: Spatial) -> bool:
    return conv.name.startswith(f"{key}.") or fnmatchcase(conv.name, key)


def _shortened(names: Sequence[str]) -> str:
    listed = ", ".join(names[:12]) or "none"
    return f"{listed}, ..." if len(names) > 12 else listed
