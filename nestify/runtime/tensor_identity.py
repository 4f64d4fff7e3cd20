"""Knows inputs again by what they hold, as loaders make new tensors of the same data in every pass,
and sees where the tensors of a model changed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from nestify.support.module_tree import tensors_in, tensors_of, weights_in

__all__ = [
    "UNCHANGED",
    "Look",
    "Snapshot",
    "Weights",
    "bits",
    "digest",
    "look_at",
    "place",
    "readable",
    "same_bits",
    "settings",
    "twin",
]

UNCHANGED = 1 << 62

_ALIGNMENT = 64  # bytes: kernels may add up in another order where memory starts elsewhere
_WORDS = (torch.int64, torch.int32, torch.int16, torch.uint8)


class Look(NamedTuple):
    """Inputs at a glance: a key that they share with few others, and their tensors."""

    key: Hashable
    tensors: list[torch.Tensor]

    def holds(self, kept: Sequence[torch.Tensor]) -> bool:
        """Whether these are the same bits as ``kept``, given that the keys agree."""
        return all(map(same_bits, kept, self.tensors))


def look_at(flat: Sequence[Any]) -> Look | None:
    """What tells inputs apart from others; None where they are none that could be kept.

    >>> x = torch.randn(2, 3)
    >>> a, b = look_at([x, 1.5]), look_at([x.clone(), 1.5])
    >>> a.key == b.key, a.holds(b.tensors), look_at([x, 2.5]).key == a.key
    (True, True, False)
    """
    tensors = [value for value in flat if isinstance(value, torch.Tensor)]
    others = [value for value in flat if not isinstance(value, torch.Tensor)]
    plain = all(isinstance(v, bool | int | float | complex | str | None) for v in others)
    if not (plain and all(map(readable, tensors))):
        return None
    layouts = tuple(
        (t.dtype, t.shape, t.stride(), str(t.device), t.data_ptr() % _ALIGNMENT) for t in tensors
    )
    digests = tuple(int(_words(t).sum()) for t in tensors)
    values = tuple(repr(v) for v in others)
    return Look((layouts, values, digests, settings()), tensors)


def settings() -> Hashable:
    """What beside the inputs decides how torch computes: precision, kernels, threads, autocast."""
    backends = torch.backends
    autocast = [
        (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
        for kind in ("cpu", "cuda")
    ]
    return (
        *autocast,
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        backends.cudnn.enabled,
        backends.cudnn.allow_tf32,
        backends.cudnn.benchmark,
        backends.mkldnn.enabled,
    )


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors of the same layout hold the same bits: zeros of both signs differ, and a
    NaN is itself.
    """
    return torch.equal(_words(a), _words(b))


def digest(tensor: torch.Tensor) -> bytes:
    """128 bits that tell the bits of one tensor from those of others."""
    words = _words(tensor).cpu().numpy()
    return hashlib.blake2b(words.data, digest_size=16).digest()


def twin(tensor: torch.Tensor) -> torch.Tensor:
    """A copy with memory of its own in the same layout, which starts as far from an aligned place.

    >>> x = torch.randn(6, 4).t()
    >>> twin(x).stride() == x.stride(), torch.equal(twin(x), x)
    (True, True)
    """
    room = _ALIGNMENT // math.gcd(_ALIGNMENT, tensor.element_size())
    ends = ((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    length = 1 + sum(ends) if tensor.numel() else 0
    memory = tensor.new_empty(length + room)
    size = tensor.element_size()
    gap = (tensor.data_ptr() - memory.data_ptr()) % _ALIGNMENT // size
    made = memory.as_strided(tensor.shape, tensor.stride(), gap)
    flat = tensor.as_strided((length,), (1,)) if tensor.numel() else tensor.reshape(-1)
    memory[gap : gap + length].copy_(flat)
    return made


class Weights:
    """Sees where the tensors of a module tree changed since it looked last.

    A tensor counts as changed where it was written into, by its version, or lies elsewhere.
    ``first_reads`` gives the slot of the first call that reads each one; what no call reads (the
    batches that a norm counted) stands for all. ``addresses`` are those of all tensors.

    >>> net = nn.Linear(2, 2)
    >>> weights = Weights({"weight": 3, "bias": 3})
    >>> weights.first_change(net), weights.first_change(net) == UNCHANGED
    (0, True)
    >>> with torch.no_grad():
    ...     _ = net.bias.add_(1)
    >>> weights.first_change(net)
    3
    """

    def __init__(self, first_reads: Mapping[str, int]) -> None:
        self._first_reads = first_reads
        self._prints: list[Hashable] = []
        self._held: list[torch.Tensor] = []
        self.addresses: set[int] = set()

    def first_change(self, root: nn.Module) -> int | None:
        """The slot from which on calls may give something else than before; None where torch does
        not tell whether tensors are written into.
        """
        tensors = list(tensors_in(root))
        try:
            prints: list[Hashable] = [(t.data_ptr(), t._version, t.stride()) for t in tensors]
        except RuntimeError:  # made in inference mode
            return None
        if prints == self._prints:
            return UNCHANGED
        first = 0
        if len(prints) == len(self._prints):
            pairs = zip(tensors, prints, self._prints, strict=True)
            changed = {id(tensor) for tensor, now, before in pairs if now != before}
            names = (name for name, tensor in tensors_of(root) if id(tensor) in changed)
            first = min(self._first_reads.get(name, 0) for name in names)
        self._prints = prints
        # While the memory is held no other tensor can come to lie there and look the same.
        self._held = [tensor.detach() for tensor in tensors]
        self.addresses = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        return first


class Snapshot:
    """Tells whether the parameters of a module tree hold what they held when it was taken.

    Only those that were written into or lie elsewhere are compared, by their bits: weights that
    were swapped for others and back are no change.

    >>> net = nn.Linear(2, 2)
    >>> snapshot = Snapshot(net)
    >>> with torch.no_grad():
    ...     _ = net.bias.add_(1)
    >>> snapshot.changed(net)
    'bias'
    """

    def __init__(self, root: nn.Module) -> None:
        self._held: dict[str, tuple[Hashable, torch.Tensor]] = {}
        self._places = _places(root)
        self._bits: dict[str, Hashable] = {}
        for name, weight in _weights(root).items():
            self._hold(name, weight)
            self._bits[name] = bits(weight)

    def changed(self, root: nn.Module, *, closely: bool = False) -> str | None:
        """The name of a parameter that holds something else, or is not there in one of both.

        ``closely`` compares all: what is written through ``.data`` or NumPy leaves no sign.
        """
        places = _places(root)
        if places == self._places and not closely:
            return None
        weights = _weights(root)
        if weights.keys() != self._bits.keys():
            return min(weights.keys() ^ self._bits.keys())
        for name, weight in weights.items():
            if closely or place(weight) != self._held[name][0]:
                if bits(weight) != self._bits[name]:
                    return name
                self._hold(name, weight)
        self._places = places
        return None

    def _hold(self, name: str, weight: torch.Tensor) -> None:
        """While the memory is held no other tensor can come to lie there and look the same."""
        self._held[name] = place(weight), weight.detach()


def _places(root: nn.Module) -> list[Hashable]:
    return [place(weight) for weight in weights_in(root) if readable(weight)]


def _weights(root: nn.Module) -> dict[str, torch.Tensor]:
    named = root.named_parameters(remove_duplicate=False)
    return {name: weight for name, weight in named if readable(weight)}


def place(tensor: torch.Tensor) -> Hashable:
    """Where a tensor lies and how often it was written into, as far as torch tells.

    >>> x = torch.zeros(2)
    >>> before = place(x)
    >>> place(x) == before, place(x.add_(1)) == before
    (True, False)
    """
    writes = 0 if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), writes, tensor.stride()


def bits(tensor: torch.Tensor) -> Hashable:
    """What tells the values of a tensor from others, whatever their layout.

    >>> x = torch.randn(2, 3)
    >>> bits(x.t().contiguous().t()) == bits(x), bits(x + 1) == bits(x)
    (True, False)
    """
    return tensor.dtype, tensor.shape, digest(tensor.detach().contiguous())


def readable(tensor: torch.Tensor) -> bool:
    """Whether the bits of a tensor can be told: it is a plain one, with values in memory.

    >>> readable(torch.ones(2)), readable(torch.ones(2).to_sparse())
    (True, False)
    """
    return (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.layout == torch.strided
        and not (tensor.is_meta or tensor.is_conj() or tensor.is_neg() or tensor.is_quantized)
    )


def _words(tensor: torch.Tensor) -> torch.Tensor:
    """The bits of a tensor as integers, in the order of memory where it has no gaps."""
    tensor = tensor.detach()
    if not tensor.is_contiguous():
        tensor = tensor.permute(sorted(range(tensor.ndim), key=tensor.stride, reverse=True))
    flat = tensor.reshape(-1).contiguous()
    size = flat.element_size()
    ends = flat.storage_offset() * size | flat.numel() * size
    return flat.view(next(width for width in _WORDS if not ends % width.itemsize))
