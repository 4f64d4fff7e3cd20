"""Know a nested model again: two hashes, one of its structure and one of its weights."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nestify.nested import NestedModel


@dataclass(frozen=True)
class Fingerprint:
    """Two hashes of a nested model.

    Attributes:
        structure: of the recipe, the units, and every tensor's name, shape and dtype: a plan's
            subnets
            mean something only for this structure.
        weights: of the values: a plan's scores hold only for these.
    """

    structure: str
    weights: str


def fingerprint(nested: NestedModel) -> Fingerprint:
    """Return the fingerprint of ``nested``.

    Example:
        >>> import nestify
        >>> fingerprint(nested) == fingerprint(nestify.transform(model, "fn3-channel", (x,)))
        True
    """
    import torch

    tensors = sorted(nested.state_dict().items())
    shapes = [(name, list(tensor.shape), str(tensor.dtype)) for name, tensor in tensors]
    units = [(u.name, u.kind, list(u.choices)) for u in nested.space.units]
    structure = json.dumps([nested.recipe, units, shapes])
    weights = hashlib.sha256()
    for _, tensor in tensors:
        # A clone, as a single element may count as contiguous with any stride, which view refuses.
        flat = tensor.detach().cpu().flatten().clone(memory_format=torch.contiguous_format)
        weights.update(flat.view(torch.uint8).numpy().data)
    return Fingerprint(hashlib.sha256(structure.encode()).hexdigest(), weights.hexdigest())
