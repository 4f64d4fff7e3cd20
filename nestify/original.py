"""The user's own class with a subnet's tensors in it, where that class can hold them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import fx, nn

from nestify.compare import relative_error
from nestify.errors import VerificationError
from nestify.trees import put_tensor, submodule

__all__ = ["as_original_class"]

_SIZES = (
    "in_channels out_channels groups in_features out_features num_features normalized_shape num_channels "
    "num_groups num_embeddings embedding_dim num_parameters embed_dim"
).split()


def as_original_class(
    original: nn.Module, slim: fx.GraphModule, args: Any, kwargs: Any
) -> nn.Module:
    """Put the sliced tensors into a copy of the user's own class, and prove that it computes the same.

    Raises:
        VerificationError: the class cannot hold them: its forward spells a size itself (a reshape by a
            literal or by an attribute such as ``num_heads``), or a tensor is not where the class reads it.
    """
    copied = copy.deepcopy(original).eval()
    state = dict(slim.named_parameters(remove_duplicate=False)) | dict(
        slim.named_buffers(remove_duplicate=False)
    )
    for path, module in copied.named_modules():
        counterpart = submodule(slim, path)
        for attribute in _SIZES:
            if (
                counterpart is not None
                and hasattr(module, attribute)
                and hasattr(counterpart, attribute)
            ):
                setattr(module, attribute, getattr(counterpart, attribute))
    for alias, tensor in state.items():
        path, _, leaf = alias.rpartition(".")
        owner = submodule(copied, path)
        if owner is not None and (leaf in owner._parameters or leaf in owner._buffers):
            put_tensor(
                owner,
                leaf,
                tensor.detach().clone() if not isinstance(tensor, nn.Parameter) else tensor,
            )
    name = type(original).__name__
    try:
        with torch.no_grad():
            error = relative_error(slim(*args, **kwargs), copied(*args, **kwargs))
    except Exception as problem:  # the user's own forward, whatever it raises
        raise VerificationError(
            f"{name} cannot hold this subnet: its forward fails on the sliced tensors "
            f"({type(problem).__name__}: {problem}); use the GraphModule that extract returns"
        ) from problem
    if error > 1e-5:
        raise VerificationError(
            f"{name} cannot hold this subnet: with the sliced tensors its output differs by {error:.1e} "
            "relative, so its forward depends on a size that changed; use the GraphModule that extract returns"
        )
    return copied
