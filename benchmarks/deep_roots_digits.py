"""Deep Roots, trained: accuracy of NiN-like networks with filter groups against the original.

    python benchmarks/deep_roots_digits.py --plot digits.png
    python benchmarks/deep_roots_digits.py --cifar10 FOLDER --width 1 --epochs 200

Claim (section 4.1 of the paper): grouping the spatial convolutions as a root keeps the accuracy.
Every network is ``nestify.transform(original, "root-N")`` of the same NiN, trained from new weights
in the same way; the table gives mean and standard deviation over seeds. Data are scikit-learn's
8 x 8 digits at 32 x 32, or CIFAR-10 (the folder of its binary version, which is data alone).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from support.clock import Row, show, write
from torch import Tensor, nn

import nestify
from examples.models.nin import NiN

RECIPES = ("original", "root-2", "root-4", "root-8", "root-16")
BATCH, SHIFT = 64, 2


class Data(NamedTuple):
    """Images (n, 3, 32, 32) of mean 0 and variance 1, and labels, to train on and to test on."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    mirrored: bool


def digits() -> Data:
    """1200 and 597 handwritten digits, enlarged to 32 x 32; the split is the same at each call."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32)[:, None] / 16
    images = F.interpolate(images, size=(32, 32), mode="bilinear", align_corners=False)
    images = ((images - images.mean()) / images.std()).expand(-1, 3, -1, -1).contiguous()
    labels = torch.tensor(found.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[:1200], order[1200:]
    return Data((images[train], labels[train]), (images[test], labels[test]), mirrored=False)


def cifar10(folder: Path) -> Data:
    """CIFAR-10 from ``data_batch_1.bin`` and so on: a label and 3072 pixels a record."""

    def read(names: list[str]) -> tuple[Tensor, Tensor]:
        raw = np.concatenate(
            [np.fromfile(folder / name, dtype=np.uint8).reshape(-1, 3073) for name in names]
        )
        pixels = torch.from_numpy(raw[:, 1:].reshape(-1, 3, 32, 32).copy()).float() / 255
        return pixels, torch.from_numpy(raw[:, 0].astype(np.int64))

    images, labels = read([f"data_batch_{i}.bin" for i in range(1, 6)])
    tests, answers = read(["test_batch.bin"])
    mean, scale = images.mean((0, 2, 3), keepdim=True), images.std((0, 2, 3), keepdim=True)
    return Data(((images - mean) / scale, labels), ((tests - mean) / scale, answers), mirrored=True)


def batches(data: Data, draw: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch: shuffled, each batch shifted by up to ``SHIFT`` pixels, mirrored or not."""
    images, labels = data.train
    for index in torch.randperm(len(labels), generator=draw).split(BATCH):
        padded = F.pad(images[index], [SHIFT] * 4)
        top, left = torch.randint(0, 2 * SHIFT + 1, (2,), generator=draw).tolist()
        x = padded[:, :, top : top + 32, left : left + 32]
        if data.mirrored and torch.rand((), generator=draw) < 0.5:
            x = x.flip(3)
        yield x, labels[index]


def train(model: nn.Module, data: Data, epochs: int, seed: int) -> None:
    """SGD with Nesterov momentum and a cosine schedule, as any user's loop would."""
    draw = torch.Generator().manual_seed(seed)
    steps = epochs * -(-len(data.train[1]) // BATCH)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for _ in range(epochs):
        for x, y in batches(data, draw):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            schedule.step()
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, data: Data) -> float:
    """The share of test images that are named right."""
    images, labels = data.test
    hits = [
        (model(x).argmax(1) == y) for x, y in zip(images.split(256), labels.split(256), strict=True)
    ]
    return torch.cat(hits).float().mean().item()


def run(recipe: str, data: Data, width: float, epochs: int, seed: int) -> tuple[float, int, int]:
    """Train one network; its accuracy, MACs and parameters, of what would be shipped."""
    torch.manual_seed(seed)
    model: nn.Module = NiN(width=width)
    x = (data.test[0][:2],)
    if recipe == "original":
        train(model, data, epochs, seed)
        shipped = model.eval()
    else:
        nested = nestify.transform(model, recipe, x)
        train(nested, data, epochs, seed)
        shipped = nested.extract(nested.space.largest())
    cost = nestify.estimate(shipped, x, convention="caffe")
    return accuracy(shipped, data), cost.macs, cost.params


def plot(rows: list[Row], path: Path) -> None:
    """Accuracy over MACs and over parameters, as Fig. 5 shows it."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(9, 3.5), sharey=True, layout="constrained")
    for panel, cost in zip(panels, ("MACs", "params"), strict=True):
        for row in rows:
            panel.errorbar(row[cost], row["accuracy"], row["deviation"], fmt="o", capsize=3)
            panel.annotate(
                row["network"],
                (row[cost], row["accuracy"]),
                xytext=(4, 4),
                textcoords="offset points",
                fontsize=8,
            )
        panel.set_xlabel(cost)
        panel.set_xlim(left=0)
    panels[0].set_ylabel("test accuracy, mean and deviation")
    figure.savefig(path, dpi=110)
    print(f"\nwrote {path}")


def main() -> None:
    """Train every network with every seed; print, write and plot the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cifar10", type=Path, metavar="FOLDER")
    parser.add_argument("--width", type=float, default=1 / 6, help="of NiN's layers")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--recipes", nargs="+", default=RECIPES, metavar="RECIPE")
    parser.add_argument("--plot", type=Path, metavar="PNG")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = digits() if options.cifar10 is None else cifar10(options.cifar10)
    rows: list[Row] = []
    for recipe in options.recipes:
        runs = [
            run(recipe, data, options.width, options.epochs, seed) for seed in range(options.seeds)
        ]
        scores = [score for score, _, _ in runs]
        rows.append(
            {
                "network": recipe,
                "MACs": runs[0][1],
                "params": runs[0][2],
                "accuracy": float(np.mean(scores)),
                "deviation": float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0,
                "runs": " ".join(f"{score:.4f}" for score in scores),
            }
        )
        print(rows[-1], flush=True)
    where = "digits" if options.cifar10 is None else "CIFAR-10"
    title = (
        f"NiN at width {options.width:.3g} on {where}, {options.epochs} epochs, "
        f"{options.seeds} seeds"
    )
    show(title, [{**row, "accuracy": f"{row['accuracy']:.4f}"} for row in rows])
    write(f"deep_roots_{where.lower().replace('-', '')}", {"options": title, "rows": rows})
    if options.plot is not None:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
