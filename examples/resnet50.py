"""ResNet-50: where a classic network holds its cost, and which of it can shrink.

    nestify inspect examples/resnet50.py
    nestify plan examples/resnet50.py --target cpu --constraint macs=2e9 --out out/resnet50

``inspect`` prints the groups: sets of dims in many weights that are one and the same width. Two
kinds appear:

- the inner widths of a block (the outputs of its first two convolutions): each is a group of its
  own, free to shrink alone;
- the width of a stage: the shortcut and every block of the stage are added up, so their outputs
  are one group, together with the inputs of all that read them.

It also lists the blocks that may go altogether: where ``x + f(x)`` has the same shape on both
sides, ``x`` alone would do. ``--constraint`` then asks for the best subnet under a number;
several may be given.

The network is that of He et al., "Deep Residual Learning" (2015), in the v1.5 form in common use
(the 3 x 3 convolution carries the stride): 25,557,032 parameters, 4,089,184,256 multiply-adds at
224 x 224. The weights are random: nothing is downloaded.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

EXPANSION = 4  # a block's output is this many times as wide as its inside


class Bottleneck(nn.Module):
    """1 x 1 down, 3 x 3, 1 x 1 up, added to the shortcut."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        outputs = width * EXPANSION
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, height, width) to (batch, 4 width, height / stride, width / stride)."""
        y = self.relu(self.norm1(self.conv1(x)))
        y = self.relu(self.norm2(self.conv2(y)))
        return self.relu(self.norm3(self.conv3(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """A 7 x 7 stem, four stages of bottlenecks, a linear classifier."""

    def __init__(self, blocks: tuple[int, int, int, int], classes: int = 1000):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        self.stage1 = stage(64, 64, blocks[0], stride=1)
        self.stage2 = stage(64 * EXPANSION, 128, blocks[1], stride=2)
        self.stage3 = stage(128 * EXPANSION, 256, blocks[2], stride=2)
        self.stage4 = stage(256 * EXPANSION, 512, blocks[3], stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(512 * EXPANSION, classes)
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Images (batch, 3, height, width) to logits (batch, classes)."""
        x = self.stage4(self.stage3(self.stage2(self.stage1(self.stem(x)))))
        return self.classifier(self.pool(x).flatten(1))


def stage(inputs: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    """Blocks of one width, the first of which changes width and resolution."""
    rest = (Bottleneck(width * EXPANSION, width, 1) for _ in range(blocks - 1))
    return nn.Sequential(Bottleneck(inputs, width, stride), *rest)


def initialise(module: nn.Module) -> None:
    """Random weights that keep the scale of the signal."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def model() -> nn.Module:
    """The model to plan, the same at each call."""
    torch.manual_seed(0)
    return ResNet((3, 4, 6, 3))


def example_inputs() -> tuple[Tensor, ...]:
    """Two images, for tracing and for the fidelity score."""
    return (torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)),)
