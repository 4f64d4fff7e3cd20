"""Trained nested networks for benchmarks of the search, on scikit-learn's digits."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

import nestify
from benchmarks.support.digits import Split, digits, train
from benchmarks.support.training_networks import Classifier, ResNeXtBlock
from examples.mobilenet_v2 import ConvNormAct, InvertedResidual

EPOCHS = 40


class Subject(NamedTuple):
    """A network, the recipe that nests it, and how fast it learns."""

    name: str
    model: Callable[[], nn.Module]
    recipe: str


def _images(blocks: list[nn.Module], stem: int, width: int) -> nn.Module:
    return Classifier(ConvNormAct(1, stem, 3), blocks, width)


def mobilenet() -> nn.Module:
    """MobileNetV2-like: seven inverted residual blocks, 8 x 8 and 4 x 4 pixels."""
    blocks: list[nn.Module] = []
    width = 16
    for outputs, stride, repeats in ((16, 1, 2), (24, 2, 3), (32, 1, 2)):
        for i in range(repeats):
            blocks.append(InvertedResidual(width, outputs, 4, stride if i == 0 else 1))
            width = outputs
    return _images(blocks, 16, width)


def resnext() -> nn.Module:
    """ResNeXt-29-like: nine bottlenecks of eight paths, as FN3's."""
    blocks: list[nn.Module] = []
    width = 16
    for outputs, inner, stride in ((16, 16, 1), (24, 16, 2), (32, 32, 1)):
        for i in range(3):
            blocks.append(ResNeXtBlock(width, outputs, inner, 8, stride if i == 0 else 1))
            width = outputs
    return _images(blocks, 16, width)


def small() -> nn.Module:
    """Three convolutions, few enough choices to score every subnet."""
    layers: list[nn.Module] = []
    inputs = 1
    for outputs in (16, 16, 32):
        layers += [ConvNormAct(inputs, outputs, 3)]
        inputs = outputs
    layers.insert(2, nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


MOBILENET = Subject("MobileNetV2-like", mobilenet, "fn3-channel{where=all,step=8}")
RESNEXT = Subject("ResNeXt-like, 9 x 8 paths", resnext, "fn3-path+fn3-channel{where=all,step=4}")
SMALL = Subject("three convolutions", small, "fn3-channel{where=all,step=2}")


def trained(subject: Subject, epochs: int = EPOCHS, seed: int = 0) -> nestify.NestedModel:
    """A nested model, trained by the default draws in a plain loop."""
    torch.manual_seed(seed)
    nested = nestify.transform(subject.model(), subject.recipe, (digits()[0].x[:2],))
    train(nested, seed, epochs=epochs)
    return nested.eval()


class Scorer:
    """Which of the test images, or of some of them, a network knows."""

    def __init__(self, images: Tensor | None = None) -> None:
        every = torch.arange(len(digits()[1].y)) if images is None else images
        self.batch = Split(digits()[1].x[every], digits()[1].y[every])
        self.calibration: list[Tensor] = list(digits()[0].x.split(256))[:2]

    @torch.no_grad()
    def hits(self, model: nn.Module, batch: Split) -> Tensor:
        """1 for each image that is known, 0 for the others."""
        return (model(batch.x).argmax(1) == batch.y).double()
