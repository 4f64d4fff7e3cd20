"""The tensors of a graph: which it uses, which are one tensor under two names, and their file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from nestify.errors import UsageError


@dataclass(frozen=True)
class State:
    """Tensors by name, each storage once; ``ties`` maps every further name to the first.

    >>> a = torch.nn.Linear(2, 2); b = torch.nn.Linear(2, 2); b.weight = a.weight
    >>> state = state_of(torch.nn.ModuleDict({"a": a, "b": b}), ["a.weight", "b.weight", "b.bias"])
    >>> sorted(state.tensors), state.ties
    (['a.weight', 'b.bias'], {'b.weight': 'a.weight'})
    """

    tensors: Mapping[str, torch.Tensor]
    ties: Mapping[str, str]


def state_of(model: torch.nn.Module, names: list[str]) -> State:
    """The named tensors of a model; two names are tied if they see the same memory in the same
    way.
    """
    tensors: dict[str, torch.Tensor] = {}
    ties: dict[str, str] = {}
    seen: dict[object, str] = {}
    for name in names:
        tensor = tensor_at(model, name)
        place = (
            (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
            if tensor.numel()
            else name
        )
        if place in seen:
            ties[name] = seen[place]
        else:
            seen[place] = name
            tensors[name] = tensor
    return State(tensors, ties)


def tensor_at(model: torch.nn.Module, name: str) -> torch.Tensor:
    """The parameter, buffer or plain tensor attribute of that dotted name."""
    path, _, last = name.rpartition(".")
    value = getattr(model.get_submodule(path), last)
    if not isinstance(value, torch.Tensor):
        raise UsageError(
            f"{name!r} is the code of a block, such as one under no_grad or autocast, which the "
            "written source cannot hold; export .pt2, or what nested.extract gives"
        )
    return value


def write_safetensors(path: Path, state: State, metadata: Mapping[str, str]) -> None:
    """Write the tensors, each once, with ``metadata`` as text in the header."""
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().contiguous().clone() for name, tensor in state.tensors.items()}
    save_file(tensors, path, {"format": "pt", **metadata})
