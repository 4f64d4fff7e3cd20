"""Modules: sharing, parametrisations, lists, buffers, constants, structured inputs, dtypes."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from tests.patterns.pattern import Patterns

MODULES = Patterns()
pattern = MODULES.add


@pattern(
    "6",
    """
    stem 8 neuron stem.weight:0 stem.bias:0 shared.weight:0 shared.weight:1 shared.bias:0
        head.weight:1
    """,
)
class SharedTwice(nn.Module):
    """One layer called twice: what it reads and what it gives are one dim."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.shared(self.shared(self.stem(x)).relu()).relu())


@pattern(
    "6",
    """
    layers.0 8 neuron layers.0.weight:0 layers.0.bias:0 layers.1.weight:1
    layers.1 10 neuron layers.1.weight:0 layers.1.bias:0 layers.2.weight:1
    layers.2 7 neuron layers.2.weight:0 layers.2.bias:0 heads.a.weight:1 heads.b.weight:1
    """,
)
class DynamicList(nn.Module):
    """Layers picked from a list and a dict by names and numbers computed at run time."""

    def __init__(self) -> None:
        super().__init__()
        widths = [6, 8, 10, 7]
        pairs = pairwise(widths)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairs)
        self.bends = nn.ModuleDict({"even": nn.ReLU(), "odd": nn.GELU()})
        self.heads = nn.ModuleDict({"a": nn.Linear(7, 3), "b": nn.Linear(7, 2)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i in range(len(self.layers)):
            x = self.bends["odd" if i % 2 else "even"](self.layers[i](x))
        return torch.cat([head(x) for head in self.heads.values()], -1)


@pattern(
    "6",
    """
    stem 8 neuron stem.weight:0 stem.bias:0 mean:0 mask:0
    head 8 neuron head.weight:1 mask:1
    """,
)
class Buffers(nn.Module):
    """Buffers and plain tensors in the arithmetic of elastic dims are sliced with them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.register_buffer("mean", torch.randn(8))
        self.register_buffer("mask", torch.randn(8, 8), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x) - self.mean
        return self.head((x @ self.mask).relu())


@pattern(
    "6",
    """
    stem 8 neuron stem.weight:0 stem.bias:0 head.weight:1
    head 3 neuron head.weight:1 lifted_tensor_0:0
    """,
)
class Constants(nn.Module):
    """Tensors made in forward: full, counted, and a literal one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 8), nn.Linear(11, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x) * torch.full((8,), 0.5, dtype=x.dtype, device=x.device)
        x = x + torch.zeros_like(x)
        steps = torch.tensor([0.5, -1.0, 2.0], dtype=x.dtype, device=x.device).expand(x.shape[0], 3)
        return self.head(torch.cat([x.relu(), steps], 1))


def _structured(batch: int) -> tuple[Any, ...]:
    return (
        {"image": torch.randn(batch, 6), "ids": torch.randint(7, (batch,))},
        (torch.randn(batch, 4), [torch.randn(batch, 4)]),
    )


@pattern(
    _structured,
    """
    image 8 neuron image.weight:0 image.bias:0 words.weight:1 pair.weight:0 pair.bias:0
        heads.0.weight:1 heads.1.weight:1
    """,
    fixed="""
    7 embedding words.weight:0
    """,
)
class Structured(nn.Module):
    """Dicts, tuples and lists go in, and come out."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.words, self.pair = nn.Linear(6, 8), nn.Embedding(7, 8), nn.Linear(4, 8)
        self.heads = nn.ModuleList(nn.Linear(8, 3) for _ in range(2))

    def forward(self, given: dict[str, torch.Tensor], pair: Any) -> dict[str, Any]:
        x = self.image(given["image"]) + self.words(given["ids"])
        y = self.pair(pair[0] + pair[1][0]) + x
        return {"one": self.heads[0](x.relu()), "both": (self.heads[1](y.relu()), [y.mean(1)])}


@pattern(
    "i9: 4, i5: 4",
    """
    words 8 neuron words.weight:1 kinds.weight:1 head.weight:1
    """,
    fixed="""
    9 embedding words.weight:0
    5 embedding kinds.weight:0
    """,
)
class IntegerInputs(nn.Module):
    """Words, their kinds, and a mask made of them: nothing but integers goes in."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.kinds = nn.Embedding(9, 8), nn.Embedding(5, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, ids: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        x = (self.words(ids) + self.kinds(kinds)).tanh() * (ids != 0)[..., None]
        return self.head(x.sum(1))


class _Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.middle, self.head = nn.Conv2d(8, 6, 1), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.silu(self.middle(self.norm(self.stem(x)).relu()))
        return self.head(x.mean((2, 3)))


@pattern(
    "3 6 6",
    """
    stem 8 channel stem.weight:0 stem.bias:0 norm.weight:0 norm.bias:0 middle.weight:1
        norm.running_mean:0 norm.running_var:0
    middle 6 channel middle.weight:0 middle.bias:0 head.weight:1
    """,
    dtype=torch.float16,
)
class Half(_Small):
    """A model in half precision stays in it."""


@pattern(
    "3 6 6",
    """
    stem 8 channel stem.weight:0 stem.bias:0 norm.weight:0 norm.bias:0 middle.weight:1
        norm.running_mean:0 norm.running_var:0
    middle 6 channel middle.weight:0 middle.bias:0 head.weight:1
    """,
    dtype=torch.bfloat16,
)
class BFloat16(_Small):
    """A model in bfloat16 stays in it."""


@pattern(
    "3 6 6",
    """
    stem.parametrizations.weight.original0 8 channel stem.bias:0
        stem.parametrizations.weight.original0:0 stem.parametrizations.weight.original1:0
        middle.parametrizations.weight.original1:1
    middle.parametrizations.weight.original0 6 channel middle.bias:0
        middle.parametrizations.weight.original0:0 middle.parametrizations.weight.original1:0
        head.weight:1
    """,
)
class WeightNorm(nn.Module):
    """A direction and a length for each filter; the direction's norm is that of what is left."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = parametrizations.weight_norm(nn.Conv2d(3, 8, 1))
        self.middle = parametrizations.weight_norm(nn.Conv2d(8, 6, 1))
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.middle(self.stem(x).relu()).relu())


@pattern(
    "3 6 6",
    """
    stem.parametrizations.weight.original 8 channel stem.bias:0
        stem.parametrizations.weight.original:0 middle.parametrizations.weight.original:1
        stem.parametrizations.weight.0._u:0 middle.parametrizations.weight.0._v:0
    middle.parametrizations.weight.original 6 channel middle.bias:0
        middle.parametrizations.weight.original:0 head.weight:1
        middle.parametrizations.weight.0._u:0
    """,
    note="does in training only",
)
class SpectralNorm(nn.Module):
    """A weight divided by its largest singular value, which two buffers track."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = parametrizations.spectral_norm(nn.Conv2d(3, 8, 1))
        self.middle = parametrizations.spectral_norm(nn.Conv2d(8, 6, 1))
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.middle(self.stem(x).relu()).relu())


@pattern(
    "6",
    """
    stem 8 neuron stem.weight:0 stem.bias:0 again.2.weight:1 norm.weight:0 norm.bias:0
        norm.running_mean:0 norm.running_var:0
    again.2 5 neuron again.2.weight:0 again.2.bias:0 head.weight:1
    """,
)
class TwoPaths(nn.Module):
    """Layers by a name of their own and in a Sequential; one activation for all."""

    def __init__(self) -> None:
        super().__init__()
        act = nn.ReLU()
        self.stem, self.norm, self.head = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(5, 3)
        self.again = nn.Sequential(self.norm, act, nn.Linear(8, 5), act)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.again(self.stem(x)))


@pattern(
    "6",
    """
    stem 8 neuron stem.weight:0 stem.bias:0 project:0
    """,
)
class Projected(nn.Module):
    """A linear map by a vector, as the box heads of D-FINE and GFL have it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.project = nn.Linear(6, 8), nn.Parameter(torch.randn(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(self.stem(x).relu(), self.project)
