"""What is extracted must compute what the nested model computes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from nestify.dims.selection import Keep
from nestify.errors import VerificationError
from nestify.runtime.program import Program
from nestify.support.closeness import LIMITS, relative_error
from nestify.support.module_state import left_as_found

__all__ = ["verify_extracted"]


def verify_extracted(
    root: nn.Module,
    program: Program,
    keep: Keep,
    slim: nn.Module,
    own: Mapping[str, torch.Tensor],
) -> None:
    """Compare an extracted network on the example inputs with ``program`` on the tensors of
    ``root``.

    Raises:
        VerificationError: they differ.
    """
    captured = program.graph.capture
    call = captured.example_for(root)
    tensors = [t for t in pytree.tree_leaves(call) if isinstance(t, torch.Tensor)]
    if any(t.is_meta for t in (*tensors, *root.parameters())):
        return
    with left_as_found(root), torch.no_grad():  # the same random state for both
        root.eval()
        flat = pytree.tree_leaves(copy.deepcopy(call))
        mine = program.run(root, program.bind(keep, program.batch_size(flat)), flat, own)
    with left_as_found(slim), torch.no_grad():
        args, kwargs = copy.deepcopy(call)
        theirs: list[Any] = pytree.tree_leaves(slim(*args, **kwargs))
    error = relative_error(mine, theirs)
    limit = max((LIMITS.get(t.dtype, 0.0) for t in (*tensors, *root.parameters())), default=0.0)
    if not error <= limit:
        raise VerificationError(
            f"the extracted model differs from the nested model by {error:.1e} relative "
            f"(limit {limit:g}); this is a defect of nestify: please report it with the model",
            error,
        )
