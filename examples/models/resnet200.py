"""ResNet-200 with pre-activation (He et al., "Identity Mappings in Deep Residual Networks", 2016).

    nestify inspect examples/models/resnet200.py

BatchNorm and ReLU come before each convolution, so the sums of the residual stream pass nothing
that bends them. Stages of 3, 24, 36 and 3 bottlenecks, the stride on the 3 x 3, no bias but the
classifier's. Counted as Caffe does (``convention="caffe"``): 15,007,482,856 multiply-adds and
64,497,832 parameters. (Deep Roots prints other figures for it: its counter multiplied each layer
by its number of filters; see ``docs/deep-roots.md``.)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

EXPANSION = 4


class Bottleneck(nn.Module):
    """(BatchNorm, ReLU, convolution) three times, added to the shortcut."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        outputs = width * EXPANSION
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, height, width) to (batch, 4 width, height / stride, width / stride)."""
        y = self.relu(self.norm1(x))
        if self.shortcut is not None:
            x = self.shortcut(y)
        y = self.conv1(y)
        y = self.conv2(self.relu(self.norm2(y)))
        return x + self.conv3(self.relu(self.norm3(y)))


class PreActResNet(nn.Module):
    """A 7 x 7 stem, four stages of bottlenecks, a last norm, a linear classifier."""

    def __init__(self, blocks: tuple[int, int, int, int], classes: int = 1000):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, padding=3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, padding=1),
        )
        self.stage1 = stage(64, 64, blocks[0], stride=1)
        self.stage2 = stage(256, 128, blocks[1], stride=2)
        self.stage3 = stage(512, 256, blocks[2], stride=2)
        self.stage4 = stage(1024, 512, blocks[3], stride=2)
        self.norm = nn.BatchNorm2d(2048)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(2048, classes)
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Images (batch, 3, height, width) to logits (batch, classes)."""
        x = self.stage4(self.stage3(self.stage2(self.stage1(self.stem(x)))))
        return self.classifier(self.pool(self.relu(self.norm(x))).flatten(1))


def stage(inputs: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    """Blocks of one width, the first of which changes width and resolution."""
    rest = (Bottleneck(width * EXPANSION, width, 1) for _ in range(blocks - 1))
    return nn.Sequential(Bottleneck(inputs, width, stride), *rest)


def initialise(module: nn.Module) -> None:
    """Random weights that keep the scale of the signal."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")


def model() -> nn.Module:
    """The model to plan, the same at each call."""
    torch.manual_seed(0)
    return PreActResNet((3, 24, 36, 3))


def example_inputs() -> tuple[Tensor, ...]:
    """Two images, for tracing and for the fidelity score."""
    return (torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)),)
