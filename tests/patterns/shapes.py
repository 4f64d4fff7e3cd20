"""Shapes: layouts, views, repeats, windows, and what they make of a channel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.patterns.pattern import Patterns

SHAPES = Patterns()
pattern = SHAPES.add


@pattern(
    "3 4 4",
    """
    stem 6 channel stem.weight:0 stem.bias:0 head.weight:1
    """,
)
class PermuteFlatten(nn.Module):
    """Flattened with the channels last: places x channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 6, 1), nn.Linear(6 * 16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.stem(x).relu().permute(0, 2, 3, 1).flatten(1))


@pattern(
    "6",
    """
    stem 5 channel stem.weight:0 stem.bias:0 head.weight:1
    """,
    fixed="4 conv2d stem.weight:0 stem.bias:0",
)
class Unflatten(nn.Module):
    """A vector read as a small map: its channels, and its fixed places."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 5 * 4), nn.Conv2d(5, 3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.stem(x).relu().unflatten(1, (5, 2, 2)))


@pattern(
    "4 6",
    """
    stem 5 neuron stem.weight:0 stem.bias:0 head.weight:1
    """,
)
class Repeat(nn.Module):
    """Copies of all channels, one set after another: they shrink together."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 5), nn.Linear(15, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.stem(x).relu().repeat(1, 1, 3))


@pattern(
    "4 6",
    """
    stem 5 neuron stem.weight:0 stem.bias:0 head.weight:1
    """,
)
class RepeatInterleave(nn.Module):
    """Copies of each channel side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 5), nn.Linear(15, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.stem(x).relu().repeat_interleave(3, -1))


@pattern(
    "4 6",
    """
    head 4 neuron shared:0 head.weight:1
    stem 5 neuron stem.weight:0 stem.bias:0 head.weight:1
    """,
)
class Expand(nn.Module):
    """One learned vector stretched over all tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 5), nn.Linear(9, 3)
        self.shared = nn.Parameter(torch.randn(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shared = self.shared.expand(x.shape[0], x.shape[1], 4)
        return self.head(torch.cat([self.stem(x).relu(), shared], -1))


@pattern(
    "4 6",
    """
    one 5 neuron one.weight:0 one.bias:0 two.weight:0 two.bias:0 head.weight:1
    """,
)
class Stack(nn.Module):
    """Two branches in a new dim, summed over it again."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.stack([self.one(x), self.two(x).relu()], 1).sum(1))


@pattern(
    "4 6",
    """
    stem 5 neuron stem.weight:0 stem.bias:0 head.weight:1
    """,
    fixed="""
    3 unbind stem.weight:0 stem.bias:0
    """,
)
class Unbind(nn.Module):
    """One layer cut into three that are used apart."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 15), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b, c = self.stem(x).view(-1, 4, 3, 5).unbind(2)
        return self.head(a * b.sigmoid() + c)


@pattern(
    "3 6 6",
    """
    stem 5 channel stem.weight:0 stem.bias:0 head.weight:1
    """,
)
class Im2col(nn.Module):
    """A convolution by hand: patches as columns, channels x places in each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 5, 1), nn.Linear(5 * 9, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.unfold(self.stem(x).relu(), 3).transpose(1, 2))


@pattern(
    "4 6",
    """
    stem 5 channel stem.weight:0 stem.bias:0 head.weight:1
    """,
)
class Fold(nn.Module):
    """Columns laid back to a map, overlaps summed."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 5 * 4), nn.Conv2d(5, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.fold(self.stem(x).relu().transpose(1, 2), (4, 4), 2, stride=2))


@pattern(
    "4 4 6",
    """
    stem 5 neuron stem.weight:0 stem.bias:0 norm.weight:0 norm.bias:0 merge.weight:1
    merge 8 neuron merge.weight:0 head.weight:1
    """,
)
class PatchMerging(nn.Module):
    """Swin: four neighbours side by side, normalised together, mixed by one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Linear(6, 5), nn.LayerNorm(20)
        self.merge = nn.Linear(20, 8, bias=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        corners = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return self.head(self.merge(self.norm(torch.cat(corners, -1))).relu())


@pattern(
    "4 6 6",
    """
    stem 8 neuron stem.weight:0 stem.bias:0 head.weight:1 qkv.weight:1 proj.weight:0 proj.bias:0
    qkv:head 2 head qkv.weight:0 qkv.bias:0 proj.weight:1
    qkv 4 neuron qkv.weight:0 qkv.bias:0 proj.weight:1
    """,
    fixed="""
    3 unbind qkv.weight:0 qkv.bias:0
    """,
)
class WindowPartition(nn.Module):
    """Swin: windows join the batch for attention, and leave it again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        n, h, w, c = x.shape
        y = x.view(n, h // 2, 2, w // 2, 2, c).transpose(2, 3).reshape(-1, 4, c)
        q, k, v = self.qkv(y).view(-1, 4, 3, 2, 4).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, 4, 8)
        y = self.proj(y).view(n, h // 2, w // 2, 2, 2, c).transpose(2, 3).reshape(n, h, w, c)
        return self.head(x + y)


@pattern(
    "4 6",
    """
    core 5 channel core:0 left.weight:0 left.bias:0
    right 7 channel core:1 right.weight:0 right.bias:0
    core:2 8 channel core:2 head.weight:1
    """,
)
class Einsum(nn.Module):
    """A bilinear map as one equation, with batch dims left to an ellipsis."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 5), nn.Linear(6, 7)
        self.core, self.head = nn.Parameter(torch.randn(5, 7, 8)), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = self.left(x), self.right(x)
        return self.head(torch.einsum("...i,...j,ijk->...k", left, right, self.core))


@pattern(
    "6",
    """
    stem 4 neuron stem.weight:0 stem.bias:0 head.weight:1
    """,
)
class Repeated(nn.Module):
    """Repeats to a size that is spelled out, as Mamba2 does, and a squeeze that drops nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 4), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stem(x).squeeze(1)
        return self.head(y.repeat_interleave(3, dim=-1, output_size=12))
