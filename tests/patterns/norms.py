"""Norms of feature maps and of filters: statistics that span channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.patterns.pattern import Patterns

NORMS = Patterns()
pattern = NORMS.add


class StandardConv(nn.Conv2d):
    """A convolution whose filters are centred and scaled before use."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        var, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True, correction=0)
        weight = (self.weight - mean) * torch.rsqrt(var + 1e-5)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


@pattern(
    "3 6 6",
    """
    stem 8 channel stem.weight:0 stem.bias:0 head.weight:1
    """,
)
class WeightStandardisation(nn.Module):
    """Statistics over a filter: a narrower filter has its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = StandardConv(3, 8, 3), StandardConv(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.stem(x).relu())


@pattern(
    "3 6 6",
    """
    stem 8 channel scale:0 stem.weight:0 stem.bias:0 head.weight:1 depth.weight:0 depth.bias:0
        norm.weight:0 norm.bias:0 up.weight:1 down.weight:0 down.bias:0
    up 16 neuron up.weight:0 up.bias:0 down.weight:1
    """,
)
class LayerScale(nn.Module):
    """ConvNeXt: a norm over channels last, a wide middle, a learned scale on the way back."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.depth, self.norm = nn.Conv2d(8, 8, 3, groups=8, padding=1), nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.scale = nn.Parameter(torch.full((8,), 1e-6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.norm(self.depth(x).permute(0, 2, 3, 1))
        y = self.scale * self.down(F.gelu(self.up(y)))
        return self.head(x + y.permute(0, 3, 1, 2))


@pattern(
    "3 6 6",
    """
    stem 3 channel stem.weight:0 stem.bias:0 head.weight:1 norm.weight:0 norm.bias:0
    stem:2 4 channel stem.weight:0 stem.bias:0 head.weight:1 norm.weight:0 norm.bias:0
    """,
)
class GroupNorm(nn.Module):
    """Statistics of a group of channels: the groups, and the channels within a group."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 4, 1)
        self.norm = nn.GroupNorm(3, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.stem(x)).relu())
