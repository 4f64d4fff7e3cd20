"""Pruning two ways: by nestify's ``rank`` and search, and by torch-pruning; and what is pruned."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nestify
from benchmarks.support import digits
from examples.reproduce_fn3 import mobilenet, perceptron, resnext
from nestify.nested.batch_norm import reestimate_batch_norm

BATCH = 64
CHANNELS = "fn3-channel{where=all}"


Key = tuple[str, float]  # an importance of torch-pruning, and a share of MACs


class Data(NamedTuple):
    """Images and labels, to train on and to test on."""

    train: digits.Split
    test: digits.Split


def small(part: digits.Split) -> digits.Split:
    """scikit-learn's digits, 8 x 8."""
    return part


def cifar_shaped(part: digits.Split) -> digits.Split:
    """The digits enlarged to 32 x 32, in three channels."""
    x = F.interpolate(part.x, size=(32, 32), mode="bilinear", align_corners=False)
    return digits.Split(x.expand(-1, 3, -1, -1).contiguous(), part.y)


class Basic(nn.Module):
    """Two 3 x 3 convolutions and a shortcut, projected where the shape changes."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if inputs != width:
            conv = nn.Conv2d(inputs, width, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """Half the resolution at stride 2."""
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


def resnet56(widths: tuple[int, ...] = (8, 16, 32), blocks: int = 9) -> nn.Module:
    """ResNet-56 for CIFAR (He et al., 2015), half as wide so that it trains on a CPU."""
    inputs = widths[0]
    layers: list[nn.Module] = [nn.Conv2d(3, inputs, 3, padding=1, bias=False)]
    layers += [nn.BatchNorm2d(inputs), nn.ReLU()]
    for stage, width in enumerate(widths):
        for block in range(blocks):
            layers.append(Basic(inputs, width, 2 if stage and not block else 1))
            inputs = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


class Subject(NamedTuple):
    """A network, what it ``sees`` of the digits, and passes.

    It is trained for ``epochs``, and after pruning for ``tuning``, ``repeats`` times, in other
    orders. Importance is measured and at most ``evaluations`` subnets are scored on ``scored``
    training images.
    """

    name: str
    build: Callable[[], nn.Module]
    sees: Callable[[digits.Split], digits.Split]
    passes: str
    epochs: int = 40
    tuning: int = 5
    rate: float = 0.1
    evaluations: int = 120
    scored: int = 512
    repeats: int = 3


IMAGE = torch.zeros(1, 8, 8)
SUBJECTS = (
    Subject("MLP", lambda: perceptron(IMAGE), small, "fn3-neuron{where=all}", rate=0.05),
    Subject("3 convolutions", digits.network, small, CHANNELS),
    Subject("MobileNetV2-like", lambda: mobilenet(IMAGE), small, CHANNELS),
    Subject("ResNeXt-like", lambda: resnext(IMAGE), small, f"{CHANNELS}+fn3-path{{where=all}}"),
    Subject("ResNet-56-like", resnet56, cifar_shaped, CHANNELS, 10, 3, 0.1, 100, 256, 1),
)


# --- training -------------------------------------------------------------------------------------


def train(net: nn.Module, data: digits.Split, epochs: int, rate: float, seed: int) -> nn.Module:
    """SGD with momentum, one cycle; for the dense networks and for fine-tuning alike."""
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(net.parameters(), rate, 0.9, weight_decay=5e-4, nesterov=True)
    steps = len(data.y) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, epochs * steps, pct_start=0.1)
    net.train()
    for _ in range(epochs):
        shuffled = torch.randperm(len(data.y), generator=order)[: steps * BATCH]
        for index in shuffled.split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(net(data.x[index]), data.y[index]).backward()
            optimizer.step()
            schedule.step()
    return net.eval()


@torch.no_grad()
def accuracy(net: nn.Module, data: digits.Split) -> float:
    """Percent right."""
    net.eval()
    right = sum(
        int((net(x).argmax(1) == y).sum())
        for x, y in zip(data.x.split(256), data.y.split(256), strict=True)
    )
    return 100 * right / len(data.y)


def macs(net: nn.Module, data: Data) -> int:
    """By one formula for both tools."""
    return nestify.estimate(net, example_inputs=(data.train.x[:2],)).macs


# --- nestify --------------------------------------------------------------------------------------


def looked_at(subject: Subject, data: Data) -> digits.Split:
    """The training images by which both tools judge."""
    return digits.Split(data.train.x[: subject.scored], data.train.y[: subject.scored])


def ranked(net: nn.Module, subject: Subject, data: Data, by: str) -> nestify.NestedModel:
    """The trained network with its positions in order; nothing in it was trained nested."""
    x, y = looked_at(subject, data)
    batches = list(zip(x.split(256), y.split(256), strict=True))
    return nestify.transform(
        net, f"rank{{by={by}}}+{subject.passes}", (x[:2],), calibration=batches
    )


def searched(
    nested: nestify.NestedModel,
    subject: Subject,
    data: Data,
    bounds: dict[Key, int],
    method: str,
    seed: int,
) -> dict[Key, nestify.Subnet]:
    """The best subnet for each budget, by the loss on training images; test images stay unseen.

    One search: the budgets share scores.
    """
    x, y = looked_at(subject, data)

    @torch.no_grad()
    def score(model: nn.Module) -> float:
        parts = zip(x.split(256), y.split(256), strict=True)
        return -sum(float(F.cross_entropy(model(a), b, reduction="sum")) for a, b in parts) / len(y)

    found: dict[Key, nestify.Subnet] = {}
    with TemporaryDirectory() as folder:
        for key, bound in bounds.items():
            plan = nestify.search(
                nested,
                score,
                method=method,
                constraints={"macs": bound},
                calibrate=list(x.split(256)),
                storage=Path(folder) / "search.db",
                evaluator="training loss",
                max_evaluations=subject.evaluations,
                seed=seed,
            )
            found[key] = plan.best(macs=bound).subnet
    return found


# --- torch-pruning --------------------------------------------------------------------------------

IMPORTANCES = {"magnitude": "GroupMagnitudeImportance", "Taylor": "GroupTaylorImportance"}
STEPS = 200


def peer(
    net: nn.Module, subject: Subject, data: Data, shares: tuple[float, ...], importance: str
) -> dict[Key, nn.Module]:
    """Global iterative pruning, gradients renewed each step, until each share of MACs is met.

    A layer keeps a tenth of its channels at least: without that limit whole layers go at 30 %.
    Where torch-pruning fails before, the shares that it has met.
    """
    tp: Any = importlib.import_module("torch_pruning")
    model = copy.deepcopy(net).eval()
    x, y = looked_at(subject, data)
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    pruner = tp.pruner.BasePruner(
        model,
        x[:2],
        importance=getattr(tp.importance, IMPORTANCES[importance])(),
        global_pruning=True,
        pruning_ratio=0.9,
        max_pruning_ratio=0.9,
        iterative_steps=STEPS,
        ignored_layers=[last],
        round_to=1,
    )
    dense, found = macs(net, data), dict[Key, nn.Module]()
    left = sorted(shares, reverse=True)
    for _ in range(STEPS):
        if importance == "Taylor":
            model.zero_grad()
            for a, b in zip(x.split(256), y.split(256), strict=True):
                (F.cross_entropy(model(a), b, reduction="sum") / len(y)).backward()
        try:
            pruner.step()
        except IndexError as error:  # seen with groups of one channel
            print(f"torch-pruning, {importance}, fails above {left[0]:.0%} of the MACs: {error}")
            return found
        now = tp.utils.count_ops_and_params(model, x[:1])[0]
        if now <= left[0] * dense * 1.1 and macs(model, data) <= left[0] * dense:
            found[importance, left.pop(0)] = pruned = copy.deepcopy(model)
            reestimate_batch_norm(pruned, data.train.x.split(256))
        if not left:
            return found
    raise ArithmeticError(f"{importance} stops above {left[0]:.0%} of the MACs")
