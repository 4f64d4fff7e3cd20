"""Module trees by dotted path: read, register and replace modules and tensors."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["get_tensor", "place_module", "put_tensor", "submodule"]


def submodule(root: nn.Module, path: str) -> nn.Module | None:
    try:
        return root.get_submodule(path)
    except AttributeError:
        return None


def container(root: nn.Module, path: str) -> nn.Module:
    for part in path.split(".") if path else ():
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    return root


def put_tensor(root: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Register a parameter or buffer under its dotted name."""
    path, _, leaf = name.rpartition(".")
    owner = container(root, path)
    if isinstance(tensor, nn.Parameter):
        owner.register_parameter(leaf, tensor)
    elif leaf in owner._buffers:
        owner._buffers[leaf] = tensor
    else:
        owner.register_buffer(leaf, tensor)


def place_module(root: nn.Module, path: str, module: nn.Module) -> None:
    """Set ``module`` at ``path``; what a plain container already held there moves into it."""
    parent, _, leaf = path.rpartition(".")
    owner = container(root, parent)
    old = owner._modules.get(leaf)
    if old is not None:
        for name, child in old.named_children():
            module.add_module(name, child)
        for name, tensor in [*old._parameters.items(), *old._buffers.items()]:
            if tensor is not None and not hasattr(module, name):
                put_tensor(module, name, tensor)
    owner.add_module(leaf, module)


def get_tensor(root: nn.Module, name: str) -> torch.Tensor:
    path, _, leaf = name.rpartition(".")
    return getattr(root.get_submodule(path), leaf)
