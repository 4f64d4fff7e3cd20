"""One call of a model as a value: its tensors, their names, the batch they share, and random
likenesses.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

__all__ = ["Call", "input_names", "output_names", "pytree", "random_like", "tensors_of"]

Path = tuple[Any, ...]


@dataclass(frozen=True)
class Call:
    """Positional and keyword arguments: any pytree of tensors and plain values.

    >>> call = Call((torch.zeros(2, 3), 5), {"mask": torch.ones(2)})
    >>> call.batch, [tuple(t.shape) for t in call.resized(3).tensors]
    (2, [(3, 3), (3,)])
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def tensors(self) -> list[torch.Tensor]:
        """The tensors of the call, in pytree order."""
        return tensors_of((self.args, dict(self.kwargs)))

    @property
    def batch(self) -> int | None:
        """The size of dim 0 of the first tensor that has one; all tensors of that size share the
        batch.
        """
        return next((t.shape[0] for t in self.tensors if t.dim() and t.shape[0]), None)

    @property
    def batched(self) -> list[torch.Tensor]:
        """The tensors whose dim 0 is the batch."""
        return [t for t in self.tensors if t.dim() and t.shape[0] == self.batch]

    def mapped(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Call:
        """The same call with every tensor replaced."""
        args, kwargs = pytree.tree_map_only(torch.Tensor, function, (self.args, dict(self.kwargs)))
        return Call(args, kwargs)

    def resized(self, batch: int) -> Call:
        """The same call at another batch size: rows are dropped or repeated."""
        size = self.batch
        if size in (None, batch):
            return self
        rows = torch.arange(batch) % size
        return self.mapped(lambda t: t[rows] if t.dim() and t.shape[0] == size else t)

    def run(self, model: Callable[..., Any]) -> Any:
        """``model`` called on copies of the tensors (a model may write into its inputs), without
        autograd.
        """
        copy = self.mapped(lambda t: t.detach().clone())
        with torch.no_grad():
            return model(*copy.args, **copy.kwargs)


def tensors_of(value: Any) -> list[torch.Tensor]:
    """The tensors in a pytree, in order.

    >>> len(tensors_of({"a": torch.zeros(1), "b": [3, torch.zeros(2)]}))
    2
    """
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def random_like(call: Call, seed: int) -> Call:
    """The same call with random values of the same dtype, shape and range.

    >>> call = random_like(Call((torch.tensor([0, 7, 3]), torch.zeros(2, 2)), {}), seed=0)
    >>> int(call.args[0].max()) <= 7, bool(call.args[1].std() > 0)
    (True, True)
    """
    generator = torch.Generator().manual_seed(seed)
    return call.mapped(lambda t: _random_tensor(t, generator))


def _random_tensor(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if not like.numel():
        return like
    finite_float = like.is_floating_point() and bool(like.isfinite().all())
    if not finite_float and (
        like.is_floating_point() or like.dtype in (torch.bool, torch.complex64)
    ):
        # Masks: only values that were seen are known to be legal (an additive mask holds 0 and
        # -inf).
        draw = torch.randint(like.numel(), like.shape, generator=generator)
        return like.flatten()[draw]
    low, high = like.min().item(), like.max().item()
    if not like.is_floating_point():
        return torch.randint(
            int(low), int(high) + 1, like.shape, generator=generator, dtype=like.dtype
        )
    if low == high:  # torch.zeros or torch.ones as a stand-in says nothing of a range
        return torch.randn(like.shape, generator=generator).to(like.dtype)
    return (torch.rand(like.shape, generator=generator) * (high - low) + low).to(like.dtype)


def input_names(model: torch.nn.Module, call: Call) -> list[str]:
    """One name for each tensor of the call, from the signature of ``forward``.

    >>> class Net(torch.nn.Module):
    ...     def forward(self, x, masks):
    ...         return x
    >>> input_names(Net(), Call((torch.zeros(1), {"left": torch.zeros(1)}), {}))
    ['x', 'masks_left']
    """
    leaves, _ = pytree.tree_flatten_with_path((call.args, dict(call.kwargs)))
    positional = _positional_names(model, len(call.args))
    names: list[str] = []
    for path, leaf in leaves:
        if isinstance(leaf, torch.Tensor):
            first = _key(path[1])
            head = positional[int(first)] if _key(path[0]) == "0" else first
            names.append("_".join([head, *map(_key, path[2:])]))
    return unique(names)


def output_names(output: Any, taken: Iterable[str] = ()) -> list[str]:
    """One name for each tensor of an output: its key, or ``output`` and its place.

    >>> output_names({"logits": torch.zeros(1), "aux": (torch.zeros(1), torch.zeros(1))})
    ['logits', 'aux_0', 'aux_1']
    >>> output_names((torch.zeros(1), torch.zeros(1)))
    ['output_0', 'output_1']
    """
    leaves, _ = pytree.tree_flatten_with_path(output)
    taken = set(taken)
    names: list[str] = []
    for path, leaf in leaves:
        if isinstance(leaf, torch.Tensor):
            name = "_".join(map(_key, path)) or "output"
            plain = name[0].isdigit() or name in taken
            names.append(f"output_{name}" if plain else name)
    return unique(names, taken)


def unique(names: Iterable[str], taken: Iterable[str] = ()) -> list[str]:
    """The names as identifiers, each once.

    >>> unique(["a b", "a_b"], taken=["c"])
    ['a_b', 'a_b_1']
    """
    seen = set(taken)
    result: list[str] = []
    for name in names:
        base = re.sub(r"\W", "_", name)
        name, suffix = base, 0
        while name in seen:
            suffix += 1
            name = f"{base}_{suffix}"
        seen.add(name)
        result.append(name)
    return result


def _positional_names(model: torch.nn.Module, count: int) -> list[str]:
    names: list[str] = []
    for parameter in inspect.signature(model.forward).parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            names += [f"{parameter.name}_{i}" for i in range(count - len(names))]
        elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            names.append(parameter.name)
    return names + [f"input_{i}" for i in range(len(names), count)]


def _key(key: Any) -> str:
    if isinstance(key, pytree.SequenceKey):
        return str(key.idx)
    if isinstance(key, pytree.MappingKey):
        return str(key.key)
    return str(getattr(key, "name", key))
