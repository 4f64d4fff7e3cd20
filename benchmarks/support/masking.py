"""The judge of a pruned network: the original with the removed positions silenced.

It knows nothing of how a tool found them: given which positions of which parameter remain, it sets
the others to zero, and lets normalisations take their statistics over what remains. It reads the
original modules, so it works for any tool that keeps their names.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

Kept = Mapping[str, Mapping[int, Tensor]]  # parameter -> dim -> the positions that remain


def individual(model: nn.Module) -> None:
    """Make every value of every parameter one of its kind, so that it can be found again."""
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.is_floating_point():
                tensor.mul_(1 + 1e-3 * torch.rand(tensor.shape, dtype=torch.float64))
                tensor.add_(1e-6 * torch.rand(tensor.shape, dtype=torch.float64))


def positions(model: nn.Module, pruned: nn.Module) -> Kept:
    """Which positions of the parameters of an ``individual`` model are left in ``pruned``.

    Raises:
        ValueError: a parameter of ``pruned`` holds values that the model has not.
    """
    original = dict(model.named_parameters(remove_duplicate=False))
    kept: dict[str, dict[int, Tensor]] = {}
    for name, small in pruned.named_parameters(remove_duplicate=False):
        if name not in original:
            raise ValueError(f"{name} is no parameter of the model")
        large = original[name].detach()
        if small.shape == large.shape and torch.equal(small, large):
            continue
        values, order = large.flatten().sort()
        at = torch.searchsorted(values, small.detach().flatten()).clamp(max=len(values) - 1)
        if not torch.equal(values[at], small.flatten()):
            raise ValueError(f"{name} holds values that the model has not")
        grid = torch.unravel_index(order[at].view(small.shape), large.shape)
        kept[name] = {
            dim: index.movedim(dim, 0).flatten(1)[:, 0] if small.ndim > 1 else index
            for dim, index in enumerate(grid)
            if small.shape[dim] != large.shape[dim]
        }
    return kept


def masked_copy(model: nn.Module, kept: Kept) -> nn.Module:
    """The model at its full size, without what ``kept`` leaves out."""
    masked = copy.deepcopy(model)
    for path, module in list(masked.named_modules()):
        own = {
            name: kept[f"{path}.{name}".lstrip(".")]
            for name, _ in module.named_parameters(recurse=False)
            if f"{path}.{name}".lstrip(".") in kept
        }
        if own and _takes_statistics(module):
            _restrict(module, own)
        elif not list(module.parameters()) and hasattr(module, "normalized_shape"):
            _restrict_to_what_lives(module)
    with torch.no_grad():
        for name, tensor in masked.named_parameters(remove_duplicate=False):
            for dim, positions in kept.get(name, {}).items():
                gone = torch.ones(tensor.shape[dim], dtype=torch.bool)
                gone[positions] = False
                tensor.index_fill_(dim, gone.nonzero().flatten(), 0)
    return masked


def _takes_statistics(module: nn.Module) -> bool:
    """Norms over channels, by their names as libraries write their own; batch norms take theirs
    channel by channel. Standardised convolutions take statistics of their weights.
    """
    name = type(module).__name__.lower()
    if "batch" in name or "frozen" in name or "instance" in name:
        return False
    return "norm" in name or "stdconv" in name


def _restrict(module: nn.Module, kept: Mapping[str, Mapping[int, Tensor]]) -> None:
    """Let a module compute on the positions that remain, and give zeros at the others."""
    weight = module.get_parameter("weight")
    if isinstance(module, nn.GroupNorm):
        _restrict_groups(module, kept["weight"][0])
        return
    out = kept["weight"].get(0, torch.arange(weight.shape[0]))
    convolves = weight.ndim > 2
    inner = kept["weight"].get(1, torch.arange(weight.shape[1])) if convolves else out
    small = copy.deepcopy(module)
    for name, dims in kept.items():
        tensor = small.get_parameter(name)
        for dim, positions in dims.items():
            tensor = tensor.index_select(dim, positions)
        setattr(small, name, nn.Parameter(tensor))
    if hasattr(small, "normalized_shape"):
        small.normalized_shape = (len(out),)
    if convolves:
        small.in_channels, small.out_channels = len(inner), len(out)
    channels_first = convolves or "2d" in type(module).__name__.lower()
    channels: int = getattr(module, "channel_dim", 1 if channels_first else -1)  # timm's name

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        at = channels % x.ndim
        y = small(x.index_select(at, inner), *args, **kwargs)
        shape = [*y.shape[:at], len(weight), *y.shape[at + 1 :]]
        return y.new_zeros(shape).index_copy(at, out, y)

    vars(module)["forward"] = forward


def _restrict_to_what_lives(module: nn.Module) -> None:
    """A norm without weights of its own: the positions that are zero everywhere are the removed."""
    small: Any = copy.deepcopy(module)
    plain = module.forward

    def forward(x: Tensor) -> Tensor:
        alive = x.flatten(0, -2).any(0).nonzero().flatten()
        if len(alive) == x.shape[-1]:
            return plain(x)
        small.normalized_shape = (len(alive),)
        return torch.zeros_like(x).index_copy(x.ndim - 1, alive, small(x.index_select(-1, alive)))

    vars(module)["forward"] = forward


def _restrict_groups(module: nn.GroupNorm, kept: Tensor) -> None:
    """Each group of the original normalises over those of its channels that remain."""
    width = module.num_channels // module.num_groups
    groups = [
        kept[(kept >= i * width) & (kept < (i + 1) * width)] for i in range(module.num_groups)
    ]

    def forward(x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        for part in groups:
            if len(part):
                weight, bias = module.weight[part], module.bias[part]
                one = nn.functional.group_norm(x[:, part], 1, weight, bias, module.eps)
                y = y.index_copy(1, part, one)
        return y

    vars(module)["forward"] = forward
