"""Name elastic dims after the modules that produce them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count

import torch

from nestify.dims import Dim
from nestify.graph.groups import Site

__all__ = ["GroupNames", "kind_of_group"]


def kind_of_group(dim: Dim, where: list[Site], tensors: Mapping[str, torch.Tensor]) -> str:
    """The kind of a group: ``head``, ``path``, ``channel`` or ``neuron``."""
    for role in ("head", "path"):
        if role in dim.tags:
            return role
    return "channel" if any(tensors[site.tensor].ndim > 2 for site in where) else "neuron"


class GroupNames:
    """Names groups after the module that produces them; a module's second group gets a suffix."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.tensors = tensors
        self.taken: set[str] = set()
        self.numbers: dict[str, Iterator[int]] = {}

    def give(self, dim: Dim, where: list[Site]) -> str:
        """Name the group of ``dim``, which has the sites ``where``."""
        wide = [s for s in where if self.tensors[s.tensor].ndim > 1]
        site = next((s for s in wide if s.dim == 0), (wide or where)[0])
        path, _, leaf = site.tensor.rpartition(".")
        base = path if path and leaf == "weight" else site.tensor
        role = next(iter(sorted(dim.tags)), "")
        candidates = [base, *([f"{base}:{role}"] if role else [])]
        if role and base not in self.taken:
            candidates.reverse()
        while candidates[0] in self.taken:
            candidates.pop(0)
            if not candidates:
                number = next(self.numbers.setdefault(base, count(2)))
                candidates = [f"{base}:{number}"]
        self.taken.add(candidates[0])
        return candidates[0]
