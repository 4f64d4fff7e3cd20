"""Models that complete themselves in their first forward: they make buffers, replace them, or
choose sizes of lazy layers.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from nestify.errors import CaptureError
from nestify.support.module_state import left_as_found
from nestify.support.module_tree import tensors_of

__all__ = ["completed"]


def completed(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> nn.Module:
    """``model`` itself, or a copy that has run once where its first forward changes which tensors
    it has, such as a table of positions that is filled on demand.

    Raises:
        CaptureError: the model changes itself, and cannot be copied.
    """
    if not _changes(model, args, kwargs):
        return model
    try:
        finished = copy.deepcopy(model)
    except Exception as error:  # a module may refuse in any way
        raise CaptureError(
            f"{type(model).__name__} makes tensors in its first forward, and cannot be copied to "
            f"run once ({type(error).__name__}: {error}); call it once before the capture"
        ) from error
    modes = [(module, module.training) for module in finished.modules()]
    _run(finished, args, kwargs)
    for module, training in modes:
        module.training = training
    return finished


def _changes(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    if any(is_lazy(tensor) for _, tensor in tensors_of(model)):
        return True
    before = _shapes(model)
    with left_as_found(model):
        return _run(model, args, kwargs) and _shapes(model) != before


def _run(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Run in eval; whether that went well, as a failure is the trace's to explain."""
    given = pytree.tree_map_only(torch.Tensor, torch.clone, (args, dict(kwargs)))
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.eval()(*given[0], **given[1])
    except Exception:  # the user's forward may raise anything
        return False
    return True


def _shapes(model: nn.Module) -> dict[str, tuple[Any, ...]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors_of(model)}
