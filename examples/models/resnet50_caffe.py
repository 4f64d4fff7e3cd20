"""ResNet-50 as its authors released it for Caffe: the first 1 x 1 of a stage carries the stride.

    nestify inspect examples/models/resnet50_caffe.py
    nestify plan examples/models/resnet50_caffe.py --recipe root-16+fn3-channel --out out/root-16

Deep Roots (Ioannou et al., 2017) starts from this form; the v1.5 in common use, with the stride on
the 3 x 3, is ``examples/resnet50.py``. Only conv1 and the classifier have a bias. Counted as Caffe
does (``convention="caffe"``): 3,857,974,312 multiply-adds and 25,503,976 parameters. ``root-16``
gives the 3 x 3 convolutions of the four stages 16, 8, 4 and 2 filter groups.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

EXPANSION = 4


class Bottleneck(nn.Module):
    """1 x 1 down with the stride, 3 x 3, 1 x 1 up, added to the shortcut."""

    def __init__(self, inputs: int, width: int, stride: int, *, project: bool):
        super().__init__()
        outputs = width * EXPANSION
        self.reduce = convolution(inputs, width, 1, stride)
        self.spatial = convolution(width, width, 3)
        self.expand = convolution(width, outputs, 1)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if project:
            self.shortcut = convolution(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, height, width) to (batch, 4 width, height / stride, width / stride)."""
        y = self.relu(self.reduce(x))
        y = self.relu(self.spatial(y))
        return self.relu(self.expand(y) + self.shortcut(x))


class ResNet50(nn.Module):
    """A 7 x 7 stem, stages res2 to res5 of 3, 4, 6 and 3 bottlenecks, a linear classifier."""

    def __init__(self, classes: int = 1000):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3)
        self.norm1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.pool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.res2 = stage(64, 64, 3, stride=1)
        self.res3 = stage(256, 128, 4, stride=2)
        self.res4 = stage(512, 256, 6, stride=2)
        self.res5 = stage(1024, 512, 3, stride=2)
        self.pool5 = nn.AdaptiveAvgPool2d(1)
        self.fc1000 = nn.Linear(2048, classes)
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Images (batch, 3, height, width) to logits (batch, classes)."""
        x = self.pool1(self.relu(self.norm1(self.conv1(x))))
        x = self.res5(self.res4(self.res3(self.res2(x))))
        return self.fc1000(self.pool5(x).flatten(1))


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """A convolution without bias and its BatchNorm."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    )


def stage(inputs: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    """Blocks of one width, the first of which changes width and resolution."""
    rest = (Bottleneck(width * EXPANSION, width, 1, project=False) for _ in range(blocks - 1))
    return nn.Sequential(Bottleneck(inputs, width, stride, project=True), *rest)


def initialise(module: nn.Module) -> None:
    """Random weights that keep the scale of the signal."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def model() -> nn.Module:
    """The model to plan, the same at each call."""
    torch.manual_seed(0)
    return ResNet50()


def example_inputs() -> tuple[Tensor, ...]:
    """Two images, for tracing and for the fidelity score."""
    return (torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)),)
