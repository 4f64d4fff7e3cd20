"""Module trees by dotted path: read, register and replace modules and tensors.

The tree is walked through the modules' own registries, not by attribute: a child may be called
``graph`` or ``train`` like a method of the root.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils import _pytree as pytree

from nestify.errors import UsageError

__all__ = [
    "children",
    "copy_weights",
    "counter",
    "device_of",
    "find",
    "first_paths",
    "get_tensor",
    "is_saved",
    "made_like",
    "modules_in",
    "moved",
    "own_names",
    "place_module",
    "put_tensor",
    "refuse_names",
    "registries",
    "skeleton",
    "submodule",
    "tensors_in",
    "tensors_of",
    "weights_in",
]


T = TypeVar("T")
_REGISTRIES = ("_modules", "_parameters", "_buffers")


def children(module: nn.Module) -> dict[str, nn.Module]:
    """The registry of child modules itself."""
    return vars(module)["_modules"]


def registries(module: nn.Module) -> dict[str, Any]:
    """The registries of a module by their names: children, parameters, buffers, and which of these
    are not saved.
    """
    return {name: vars(module)[name] for name in (*_REGISTRIES, "_non_persistent_buffers_set")}


def own_names(module: nn.Module) -> set[str]:
    """The names of its children, parameters and buffers."""
    return {name for registry in _REGISTRIES for name in vars(module)[registry]}


def submodule(root: nn.Module, path: str) -> nn.Module | None:
    """The module at ``path``, or None."""
    return _below(root, _parts(path))


def _below(root: nn.Module, parts: Sequence[str]) -> nn.Module | None:
    found: nn.Module | None = root
    for part in parts:
        found = vars(found)["_modules"].get(part)
        if found is None:
            return None
    return found


def find(root: nn.Module, path: str) -> nn.Module:
    """The module at ``path``, which must be there."""
    found = submodule(root, path)
    if found is None:
        raise AttributeError(f"no module {path!r} in {type(root).__name__}")
    return found


def first_paths(model: nn.Module) -> dict[str, str]:
    """Every path of every module -> the first path of that module, in the order of the tree."""
    first: dict[int, str] = {}
    return {
        path: first.setdefault(id(module), path)
        for path, module in model.named_modules(remove_duplicate=False)
    }


def modules_in(root: nn.Module) -> list[nn.Module]:
    """Every module under each of its paths, those nearer to the root first: torch's walk, which
    names them and leaves out those seen before, takes many times as long, and a pass of a small
    network is short.
    """
    found = [root]
    for module in found:  # which grows
        if below := vars(module)["_modules"].values():
            found += below if None not in below else [m for m in below if m is not None]
    return found


def weights_in(root: nn.Module) -> list[nn.Parameter]:
    """Parameters, in the order of `modules_in`."""
    own = [vars(module)["_parameters"] for module in modules_in(root)]
    return [p for weights in own if weights for p in weights.values() if p is not None]


def tensors_in(root: nn.Module) -> list[torch.Tensor]:
    """Parameters and buffers, in the order of `modules_in`."""
    own = [vars(module) for module in modules_in(root)]
    registries = [registry for of in own for registry in (of["_parameters"], of["_buffers"])]
    return [t for tensors in registries if tensors for t in tensors.values() if t is not None]


def tensors_of(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers under every name they have."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def counter(running_mean: str) -> str:
    """The name of the batches that a BatchNorm counted, by that of its running mean."""
    return f"{running_mean.rpartition('.')[0]}.num_batches_tracked".lstrip(".")


def device_of(model: nn.Module) -> torch.device | None:
    """Where all tensors of ``model`` lie; None where it has none, or they lie on several devices.

    >>> device_of(nn.Linear(2, 2)), device_of(nn.ReLU())
    (device(type='cpu'), None)
    """
    found = {tensor.device for tensor in tensors_in(model)}
    return found.pop() if len(found) == 1 else None


def moved(value: T, device: torch.device | None) -> T:
    """A pytree with its tensors on ``device``; None leaves them where they are."""
    if device is None:
        return value
    return pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), value)


def made_like(tensor: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """``values`` as a parameter where ``tensor`` is one: frozen or not, and with the attributes
    that were set on it (``no_decay``, a group for the optimizer).
    """
    if not isinstance(tensor, nn.Parameter):
        return values
    made = nn.Parameter(values, requires_grad=tensor.requires_grad)
    vars(made).update(vars(tensor))
    return made


def copy_weights(root: nn.Module, memo: dict[int, Any]) -> None:
    """Begin a deep copy with what torch copies not or not whole: the attributes that were set on
    parameters, and what the last forward computed and left in an attribute, as the hooks of
    `weight_norm` do.
    """
    for module in modules_in(root):
        for value in vars(module).values():
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    for weight in weights_in(root):
        vars(copy.deepcopy(weight, memo)).update(copy.deepcopy(vars(weight), memo))


def skeleton(model: nn.Module) -> nn.Module:
    """Plain containers under the paths of ``model``, in its order and in its modes."""
    root = nn.Module()
    for path, module in model.named_modules():
        _container(root, path).training = module.training
    return root


def _container(root: nn.Module, path: str) -> nn.Module:
    for part in path.split(".") if path else ():
        root = children(root).setdefault(part, nn.Module())
    return root


def get_tensor(root: nn.Module, name: str) -> torch.Tensor:
    """The parameter or buffer of that dotted name."""
    *path, leaf = _parts(name)
    owner = _below(root, path)
    if owner is None:
        raise AttributeError(f"no module {'.'.join(path)!r} in {type(root).__name__}")
    found = vars(owner)["_parameters"].get(leaf)
    if found is None:
        found = vars(owner)["_buffers"].get(leaf)
    return getattr(owner, leaf) if found is None else found


@lru_cache(maxsize=1 << 16)  # every pass asks for every tensor
def _parts(path: str) -> tuple[str, ...]:
    return tuple(path.split(".")) if path else ()


def is_saved(root: nn.Module, name: str) -> bool:
    """Whether that parameter or buffer is part of the state dict; a new one is."""
    path, _, leaf = name.rpartition(".")
    owner = submodule(root, path)
    return owner is None or leaf not in vars(owner)["_non_persistent_buffers_set"]


def put_tensor(
    root: nn.Module, name: str, tensor: torch.Tensor, *, persistent: bool = True
) -> None:
    """Register a parameter or buffer under its dotted name, after those already there."""
    path, _, leaf = name.rpartition(".")
    registries = vars(_container(root, path))
    kind = "_parameters" if isinstance(tensor, nn.Parameter) else "_buffers"
    registries[kind].pop(leaf, None)
    registries[kind][leaf] = tensor
    kept_out: set[str] = registries["_non_persistent_buffers_set"]
    if kind == "_buffers" and not persistent:
        kept_out.add(leaf)


def place_module(root: nn.Module, path: str, module: nn.Module) -> None:
    """Set ``module`` at ``path``; what a plain container already held there moves into it."""
    parent, _, leaf = path.rpartition(".")
    siblings = children(_container(root, parent))
    old = siblings.get(leaf)
    if old is not None:
        module.training = old.training
        for registry in _REGISTRIES:
            mine = vars(module)[registry]
            for name, item in vars(old)[registry].items():
                mine.setdefault(name, item)
    siblings[leaf] = module


def refuse_names(root: nn.Module, taken: Iterable[str], user: str) -> None:
    """Refuse a tree whose root has a child or tensor of a name that ``user`` has taken.

    Raises:
        UsageError: there is one.
    """
    for name in sorted(own_names(root).intersection(taken)):
        raise UsageError(
            f"the model has a module, parameter or buffer {name!r} of its own, and {user} an "
            "attribute of that name; rename it in the model"
        )
