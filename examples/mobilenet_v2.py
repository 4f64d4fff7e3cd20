"""MobileNetV2: from a model file to a plan, with one command.

    nestify plan examples/mobilenet_v2.py --target cpu --out out/mobilenet_v2

nestify asks nothing of a model but to be one. This file is plain torch: it defines ``model`` and
``example_inputs``, and does not import nestify. The command traces it, finds every width that may
shrink, measures smaller versions on this machine, and writes a table, a plan and an ONNX file.

What to look for in ``nestify inspect examples/mobilenet_v2.py``:

- a residual stream is one group: all blocks of a stage that add to each other share their width;
- the hidden width of a block is one group over three convolutions, as the depthwise one in the
  middle has as many channels as come in;
- the three input channels and the 1000 classes are fixed: they are the model's face to the world.

The network is that of Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks"
(2018), at width 1: 3,504,872 parameters, 300,774,272 multiply-adds at 224 x 224. The weights are
random, since an example should not need a download; so there is no accuracy to lose here, and
``plan`` scores a smaller version by how closely it follows the full one. Load a checkpoint in
``model`` and define ``evaluate(model) -> float`` to plan for accuracy: ``examples/mlp.py`` shows
how.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# expansion of the hidden width, output width, number of blocks, stride of the first block
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class ConvNormAct(nn.Sequential):
    """A convolution that keeps the resolution up to its stride, BatchNorm, ReLU6."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1):
        padding = kernel // 2
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU6(inplace=True),
        )


class InvertedResidual(nn.Module):
    """Widen, filter each channel on its own, narrow again; add the input where shapes allow."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int):
        super().__init__()
        hidden = inputs * expansion
        self.expand = ConvNormAct(inputs, hidden, 1) if expansion > 1 else nn.Identity()
        self.filter = ConvNormAct(hidden, hidden, 3, stride, groups=hidden)
        self.project = nn.Conv2d(hidden, outputs, 1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)  # no activation: the bottleneck is linear
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, height, width) to (batch, outputs, height / stride, width / stride)."""
        y = self.norm(self.project(self.filter(self.expand(x))))
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    """Stem, seven stages of inverted residuals, a wide 1 x 1 convolution, a linear classifier."""

    def __init__(self, classes: int = 1000):
        super().__init__()
        self.stem = ConvNormAct(3, 32, 3, stride=2)
        blocks: list[nn.Module] = []
        width = 32
        for expansion, outputs, repeats, stride in STAGES:
            for i in range(repeats):
                blocks.append(InvertedResidual(width, outputs, expansion, stride if i == 0 else 1))
                width = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = ConvNormAct(width, 1280, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(1280, classes)
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Images (batch, 3, height, width) to logits (batch, classes)."""
        x = self.head(self.blocks(self.stem(x)))
        return self.classifier(self.dropout(self.pool(x).flatten(1)))


def initialise(module: nn.Module) -> None:
    """Random weights that hold the scale of the signal, by what each output channel really reads.

    A depthwise channel reads one input channel: counted as if it read all, 17 of them in a row
    would silence the network, and there would be nothing left to compare.
    """
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")


def model() -> nn.Module:
    """The model to plan, the same at each call."""
    torch.manual_seed(0)
    return MobileNetV2()


def example_inputs() -> tuple[Tensor, ...]:
    """Two images, for tracing and for the fidelity score."""
    return (torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)),)
