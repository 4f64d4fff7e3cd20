"""The user's own class with a subnet's tensors in it, where that class can hold them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from nestify.errors import VerificationError
from nestify.support.closeness import relative_error
from nestify.support.module_tree import (
    copy_weights,
    device_of,
    is_saved,
    put_tensor,
    submodule,
    tensors_of,
)

__all__ = ["as_original_class"]

# What torch.nn's layers remember of their sizes beside their tensors.
_SIZES = (
    "in_channels out_channels groups in_features out_features num_features normalized_shape "
    "num_channels num_groups num_embeddings embedding_dim num_parameters"
).split()
_LIMIT = 1e-5


def as_original_class(
    original: nn.Module, slim: fx.GraphModule, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> nn.Module:
    """Put the sliced tensors into a copy of the user's class, and prove that it computes the same.

    Raises:
        VerificationError: the class cannot hold them: its forward spells a size itself (a reshape
            by a literal or by an attribute such as ``num_heads``), or reads a tensor elsewhere.
    """
    memo: dict[int, Any] = {}
    copy_weights(original, memo)
    copied = copy.deepcopy(original, memo).eval()
    _copy_sizes(slim, copied)
    _copy_tensors(slim, copied)
    copied.to(device_of(slim))
    name, remedy = type(original).__name__, "use the GraphModule that extract returns"
    try:
        with torch.no_grad():
            expected = slim(*copy.deepcopy(args), **copy.deepcopy(kwargs))
            error = relative_error(expected, copied(*copy.deepcopy(args), **copy.deepcopy(kwargs)))
    except Exception as problem:  # the user's own forward, whatever it raises
        raise VerificationError(
            f"{name} cannot hold this subnet: its forward fails on the sliced tensors "
            f"({type(problem).__name__}: {problem}); {remedy}"
        ) from problem
    if error > _LIMIT:
        raise VerificationError(
            f"{name} cannot hold this subnet: its forward depends on a size that changed, and its "
            f"output differs by {error:.1e} relative; {remedy}"
        )
    return copied


def _copy_sizes(source: nn.Module, target: nn.Module) -> None:
    for path, module in target.named_modules():
        counterpart = submodule(source, path)
        for attribute in _SIZES:
            if hasattr(module, attribute) and hasattr(counterpart, attribute):
                setattr(module, attribute, getattr(counterpart, attribute))


def _copy_tensors(source: nn.Module, target: nn.Module) -> None:
    """Tensors that the subnet does not read keep their values; tied ones stay tied."""
    made = dict(tensors_of(source))
    first: dict[int, str] = {}
    names = {name: first.setdefault(id(tensor), name) for name, tensor in tensors_of(target)}
    twins: dict[str, list[str]] = {}
    for name, canonical in names.items():
        twins.setdefault(canonical, []).append(name)
    memo: dict[int, Any] = {}
    for same in twins.values():
        found = next((made[name] for name in same if name in made), None)
        if found is not None:
            for name in same:
                tensor = copy.deepcopy(found, memo)
                vars(tensor).update(vars(found))  # torch copies no attributes of a parameter
                put_tensor(target, name, tensor, persistent=is_saved(target, name))
