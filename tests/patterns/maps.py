"""Feature maps: shortcuts, concatenations, gates, groups and blocks of channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.patterns.pattern import Patterns

MAPS = Patterns()
pattern = MAPS.add


@pattern(
    "3 6 6",
    """
    stem 8 channel stem.weight:0 stem.bias:0 head.weight:1 up.weight:1 down.weight:0 down.bias:0
    up 6 channel up.weight:0 up.bias:0 down.weight:1 norm.weight:0 norm.bias:0
        norm.running_mean:0 norm.running_var:0
    """,
)
class Residual(nn.Module):
    """A block added to what it read: one stream, which every reader and writer shares."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.up, self.down = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 1)
        self.norm = nn.BatchNorm2d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.head(x + self.down(self.norm(self.up(x)).relu()))


@pattern(
    "3 6 6",
    """
    stem 6 channel stem.weight:0 stem.bias:0 head.weight:1 norm1.weight:0 norm1.bias:0
        conv1.weight:1 norm2.weight:0 norm2.bias:0 conv2.weight:1 norm1.running_mean:0
        norm1.running_var:0 norm2.running_mean:0 norm2.running_var:0
    conv1 4 channel head.weight:1 conv1.weight:0 conv1.bias:0 norm2.weight:0 norm2.bias:0
        conv2.weight:1 norm2.running_mean:0 norm2.running_var:0
    conv2 4 channel head.weight:1 conv2.weight:0 conv2.bias:0
    """,
)
class DenseConcat(nn.Module):
    """DenseNet: every layer reads the channels of all before it, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(14, 4, 1)
        self.norm1, self.conv1 = nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1)
        self.norm2, self.conv2 = nn.BatchNorm2d(10), nn.Conv2d(10, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.conv1(self.norm1(x).relu())], 1)
        x = torch.cat([x, self.conv2(self.norm2(x).relu())], 1)
        return self.head(x)


@pattern(
    "3 6 6",
    """
    stem 6 channel stem.weight:0 stem.bias:0 head.weight:1 one.weight:1
    one 5 channel head.weight:1 one.weight:0 one.bias:0 two.weight:1
    two 6 channel head.weight:1 two.weight:0 two.bias:0
    """,
)
class CascadedConcat(nn.Module):
    """One-shot aggregation: a chain of layers whose outputs are all joined at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(17, 4, 1)
        self.one, self.two = nn.Conv2d(6, 5, 3, padding=1), nn.Conv2d(5, 6, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.one(x).relu()
        z = self.two(y).relu()
        return self.head(torch.cat([x, torch.cat([y, z], 1)], 1))


@pattern(
    "3 6 6",
    """
    stem 8 channel stem.weight:0 stem.bias:0 head.weight:1 squeeze.weight:1 excite.weight:0
        excite.bias:0
    squeeze 4 channel squeeze.weight:0 squeeze.bias:0 excite.weight:1
    """,
)
class SqueezeExcite(nn.Module):
    """A gate for each channel, from all channels' means."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        gate = self.excite(self.squeeze(F.adaptive_avg_pool2d(x, 1)).relu()).sigmoid()
        return self.head(x * gate)


@pattern(
    "3 6 6",
    """
    stem 6 channel stem.weight:0 stem.bias:0 head.weight:1
    """,
)
class GatedConv(nn.Module):
    """GLU: one half of the channels gates the other, so the halves shrink alike."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 12, 1), nn.Conv2d(6, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.glu(self.stem(x), 1))


@pattern(
    "3 6 6",
    """
    stem 6 channel stem.weight:0 stem.bias:0 head.weight:1
    stem:2 6 channel stem.weight:0 stem.bias:0 head.weight:1 up.weight:1 down.weight:0
        down.bias:0
    up 5 channel up.weight:0 up.bias:0 down.weight:1
    """,
)
class C2f(nn.Module):
    """YOLO's C2f: chunks of a layer, one of them worked on, all of them joined."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 12, 1), nn.Conv2d(18, 4, 1)
        self.up, self.down = nn.Conv2d(6, 5, 3, padding=1), nn.Conv2d(5, 6, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = list(self.stem(x).chunk(2, 1))
        parts.append(parts[-1] + self.down(self.up(parts[-1]).relu()))
        return self.head(torch.cat(parts, 1))


@pattern(
    "3 6 6",
    """
    stem 3 channel stem.weight:0 stem.bias:0 left.weight:1
    stem:2 7 channel stem.weight:0 stem.bias:0 right.weight:1
    """,
)
class UnevenSplit(nn.Module):
    """Parts of different sizes, each with a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 10, 1)
        self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(7, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = self.stem(x).split([3, 7], 1)
        return self.left(left) + self.right(right.relu())


@pattern(
    "3 6 6",
    """
    long 4 channel long.weight:0 long.bias:0 short.weight:0 short.bias:0 head.weight:1
    long:2 5 channel long.weight:0 long.bias:0 head.weight:1
    """,
)
class SliceAdd(nn.Module):
    """A short tensor added to the first channels of a long one."""

    def __init__(self) -> None:
        super().__init__()
        self.long, self.short = nn.Conv2d(3, 9, 1), nn.Conv2d(3, 4, 1)
        self.head = nn.Conv2d(9, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        long, short = self.long(x), self.short(x)
        return self.head(torch.cat([long[:, :4] + short, long[:, 4:]], 1))


@pattern(
    "3 6 6",
    """
    stem:path 2 path stem.weight:0 stem.bias:0 first.weight:0 first.bias:0 second.weight:1
    stem 6 channel stem.weight:0 stem.bias:0 first.weight:1
    first:path 2 path head.weight:1 first.weight:0 first.bias:0 second.weight:0 second.bias:0
    second 6 channel head.weight:1 second.weight:0 second.bias:0
    first 3 channel first.weight:0 first.bias:0 second.weight:1
    """,
)
class ChannelShuffle(nn.Module):
    """ShuffleNet: grouped layers whose outputs are dealt over the groups of the next."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 4, 1)
        self.first = nn.Conv2d(12, 12, 1, groups=2)
        self.second = nn.Conv2d(12, 12, 1, groups=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(self.stem(x)).relu()
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(self.second(x))


@pattern(
    "3 6 6",
    """
    stem 3 channel stem.weight:0 stem.bias:0 head.weight:1 layers.0.weight:0 layers.0.bias:0
        layers.1.weight:0 layers.1.bias:0
    stem:2 3 channel stem.weight:0 stem.bias:0 layers.0.weight:0 layers.0.bias:0
        layers.1.weight:1
    stem:3 6 channel stem.weight:0 stem.bias:0 layers.0.weight:1
    """,
)
class SplitShuffle(nn.Module):
    """ShuffleNetV2: one half passes by, the other is worked on, and both are dealt out anew."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 4, 1)
        self.layers = nn.ModuleList(nn.Conv2d(6, 6, 1) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for layer in self.layers:
            left, right = x.chunk(2, 1)
            x = F.channel_shuffle(torch.cat([left, layer(right).relu()], 1), 2)
        return self.head(x)


@pattern(
    "3 6 6",
    """
    stem 6 channel stem.weight:0 stem.bias:0 up.weight:0
    up 8 channel up.weight:1 up.bias:0 head.weight:1
    """,
)
class TransposedConv(nn.Module):
    """Up and down again; the transposed layer keeps its output channels in dim 1."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up = nn.Conv2d(3, 6, 1), nn.ConvTranspose2d(6, 8, 2, stride=2)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.up(self.stem(x)).relu())


@pattern(
    "3 6 6",
    """
    stem 5 channel stem.weight:0 stem.bias:0 head.weight:1 depth.weight:0 depth.bias:0
    depth 2 channel head.weight:1 depth.weight:0 depth.bias:0
    """,
)
class GroupedMultiplier(nn.Module):
    """A depthwise layer with two outputs for each input channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 5, 1), nn.Conv2d(10, 4, 1)
        self.depth = nn.Conv2d(5, 10, 3, groups=5, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.depth(self.stem(x)).relu())


@pattern(
    "3 6 6",
    """
    stem 8 channel stem.weight:0 stem.bias:0 head.weight:1 depth.weight:0 depth.bias:0
        norm.weight:0 norm.bias:0 norm.running_mean:0 norm.running_var:0
    """,
)
class DepthwiseSeparable(nn.Module):
    """MobileNet: a depthwise layer passes its channels on one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.depth, self.norm = nn.Conv2d(8, 8, 3, groups=8, padding=1), nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.depth(self.stem(x))).relu())


@pattern(
    "1 6 6",
    """
    stem 6 channel stem.weight:0 stem.bias:0 head.weight:1 map.weight:1
    """,
)
class OneChannel(nn.Module):
    """Layers with one channel on a side: the one of an input, and the one of an attention map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 1, 1)
        self.map = nn.Conv2d(6, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.head(x * self.map(x).sigmoid())


@pattern(
    "3 6 6",
    """
    stem:path 2 path stem.weight:0 stem.bias:0 head.weight:1 towers.weight:0 towers.bias:0
    stem 4 channel stem.weight:0 stem.bias:0 towers.weight:1
    towers 6 channel head.weight:1 towers.weight:0 towers.bias:0
    """,
)
class TwoGroups(nn.Module):
    """AlexNet's two towers: paths, channels of a path, and what leaves them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(12, 4, 1)
        self.towers = nn.Conv2d(8, 12, 3, groups=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.towers(self.stem(x)).relu())


@pattern(
    "3 8 8",
    """
    stem 6 channel stem.weight:0 stem.bias:0 hidden.weight:1
    hidden 10 neuron hidden.weight:0 hidden.bias:0 head.weight:1
    """,
)
class FlattenAfterPooling(nn.Module):
    """A classifier that reads every position of every channel: channels x places."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.hidden = nn.Conv2d(3, 6, 3), nn.Linear(6 * 2 * 2, 10)
        self.head = nn.Linear(10, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.adaptive_avg_pool2d(self.stem(x).relu(), 2)
        return self.head(self.hidden(torch.flatten(x, 1)).relu())


@pattern(
    "3 4 4",
    """
    stem 5 channel stem.weight:0 stem.bias:0 head.weight:1
    """,
)
class PixelUnshuffle(nn.Module):
    """Places become channels: each channel comes out as a block of four."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 5, 1), nn.Conv2d(20, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.pixel_unshuffle(self.stem(x), 2).relu())


@pattern(
    "3 4 4",
    """
    stem 3 channel stem.weight:0 stem.bias:0 head.weight:1
    """,
    fixed="""
    4 pixel_shuffle stem.weight:0 stem.bias:0
    """,
)
class PixelShuffle(nn.Module):
    """Blocks of channels become places: what is left of a channel is a group of four."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 12, 1), nn.Conv2d(3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.pixel_shuffle(self.stem(x), 2).relu())
