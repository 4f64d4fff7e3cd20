"""FN3's Figure 4 on data at hand: accuracy against removed blocks, and what the rules are worth.

    python examples/reproduce_fn3.py [--quick] [--data mnist FOLDER] [--out docs/fn3]

Three small networks of the paper's kinds (a perceptron with two hidden layers, a ResNeXt of eight
paths, a MobileNetV2) are trained twice: normally, and by ordered dropout (ODO). Then blocks are
removed: at random from both, and by the paper's search from the second. Every subnet is scored as
it would ship: extracted, with BatchNorm re-estimated. A second table turns the paper's choices on
and off: scaling at test time, re-estimated BatchNorm, masks before or after the norm, the core that
is always active, and which widths are elastic at all.

The default data are scikit-learn's digits, 8 x 8, which ship with that package. Draws are the
paper's (uniform and independent) in the figure. Writes one CSV and one PNG a part.
"""

from __future__ import annotations

import argparse
import csv
import random
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nestify
from examples.data.images import Data, cifar10, digits, mnist
from nestify import NestedModel, Subnet


class Settings(NamedTuple):
    """How long everything takes."""

    epochs: int = 40
    repeats: int = 20
    points: int = 8
    trajectories: int = 2
    candidates: int = 6
    window: float = 0.125


QUICK = Settings(epochs=1, repeats=2, points=2, trajectories=1, candidates=1, window=0.5)


# --- networks -------------------------------------------------------------------------------------


def perceptron(image: Tensor) -> nn.Module:
    """Hidden layers of 512 and 128 neurons."""
    layers = [nn.Flatten(), nn.Linear(image.numel(), 512), nn.ReLU(), nn.Linear(512, 128)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Linear(128, 10))


def unit(inputs: int, outputs: int, kernel: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class Residual(nn.Module):
    """x + f(x), where f widens, filters each path on its own, and narrows again."""

    def __init__(self, width: int, hidden: int, paths: int) -> None:
        super().__init__()
        self.widen, self.filter = unit(width, hidden), unit(hidden, hidden, 3, paths)
        self.narrow = nn.Conv2d(hidden, width, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape in and out."""
        return x + self.norm(self.narrow(self.filter(self.widen(x))))


def residual_net(image: Tensor, width: int, hidden: int, paths: int) -> nn.Module:
    """A stem, three residual blocks, pooled into a classifier."""
    blocks = [Residual(width, hidden, paths) for _ in range(3)]
    head = [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)]
    return nn.Sequential(unit(image.shape[0], width, 3), *blocks, *head)


def resnext(image: Tensor) -> nn.Module:
    """Eight paths a block."""
    return residual_net(image, 32, 64, 8)


def mobilenet(image: Tensor) -> nn.Module:
    """Each channel filtered on its own."""
    return residual_net(image, 24, 96, 96)


class Subject(NamedTuple):
    """A network of the figure, with its recipe and the paper's core."""

    name: str
    build: Callable[[Tensor], nn.Module]
    recipe: str


PAPER = "draw=uniform"
SUBJECTS = (
    Subject("MLP, neurons", perceptron, f"fn3-neuron{{core=0.125,{PAPER}}}"),
    Subject("ResNeXt, paths", resnext, f"fn3-path{{{PAPER}}}"),
    Subject(
        "MobileNetV2, channels",
        mobilenet,
        f"fn3-channel{{core=0.35,{PAPER}}}",
    ),
)


# --- training and scoring -------------------------------------------------------------------------


def train(net: nn.Module, data: tuple[Tensor, Tensor], epochs: int, seed: int = 0) -> None:
    """A plain loop: nothing in it knows of ordered dropout."""
    x, y = data
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(net.parameters(), 0.05, 0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * (len(y) // 64))
    net.train()
    for _ in range(epochs):
        for index in torch.randperm(len(y), generator=order)[: len(y) // 64 * 64].split(64):
            optimizer.zero_grad()
            F.cross_entropy(net(x[index]), y[index]).backward()
            optimizer.step()
            schedule.step()
    net.eval()


def fit(
    build: Callable[[Tensor], nn.Module], recipe: str, data: Data, epochs: int, odo: bool = True
):
    """A nested model, trained by ordered dropout or as the full network only."""
    torch.manual_seed(0)
    image = data.train[0][0]
    nested = nestify.transform(build(image), recipe, (data.train[0][:2],))
    if not odo:
        nested.activate(nested.space.largest())
    train(nested, data.train, epochs)
    nested.activate(None)
    return nested


@torch.no_grad()
def accuracy(net: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """Percent of right answers."""
    return 100 * (net(data[0]).argmax(1) == data[1]).float().mean().item()


def shipped(nested: NestedModel, subnet: Subnet, data: Data, part: str = "test") -> float:
    """Accuracy of a subnet as it would ship."""
    batches = data.train[0].split(256)
    slim = nested.extract(subnet, calibrate=batches, verify=False)
    return accuracy(slim, getattr(data, part))


# --- removing blocks ------------------------------------------------------------------------------


def removable(nested: NestedModel) -> int:
    """How many blocks the units have beyond their cores."""
    return sum(unit.size - unit.minimum for unit in nested.space.units)


def random_subnet(nested: NestedModel, removed: int, draw: random.Random) -> Subnet:
    """Remove that many blocks, from units drawn in turns, each time from the end of a unit."""
    sizes = dict(nested.space.largest())
    while removed:
        unit = draw.choice([u for u in nested.space.units if sizes[u.name] > u.minimum])
        step = min(removed, sizes[unit.name] - unit.minimum, draw.randint(1, unit.size // 4))
        sizes[unit.name] -= step
        removed -= step
    return Subnet(sizes)


def search(nested: NestedModel, data: Data, settings: Settings) -> dict[int, Subnet]:
    """FN3's Algorithm 1 in the reading that can be run: removed blocks -> the best subnet found.

    From each trajectory, candidates take the next window off one unit; the best of all
    candidates are the next trajectories.
    """
    draw = random.Random(0)
    most = removable(nested)
    best: dict[int, tuple[float, Subnet]] = {}
    trajectories = [nested.space.largest()]
    while trajectories:
        scored: dict[Subnet, float] = {}
        for start in trajectories:
            open_units = [u for u in nested.space.units if start[u.name] > u.minimum]
            for u in draw.sample(open_units, min(settings.candidates, len(open_units))):
                window = max(1, round(settings.window * u.size))
                size = max(u.minimum, start[u.name] - window)
                child = Subnet({**start, u.name: size})
                if child not in scored:
                    scored[child] = shipped(nested, child, data, "search")
        for child, score in scored.items():
            removed = most - sum(child[u.name] - u.minimum for u in nested.space.units)
            if removed not in best or score > best[removed][0]:
                best[removed] = score, child
        ranked = sorted(scored, key=lambda child: -scored[child])
        trajectories = ranked[: settings.trajectories]
    return {removed: subnet for removed, (_, subnet) in sorted(best.items())}


# --- the figure -----------------------------------------------------------------------------------


def figure(data: Data, settings: Settings) -> list[dict[str, Any]]:
    """Rows of accuracy by network, curve and share of removed blocks."""
    rows: list[dict[str, Any]] = []
    for subject in SUBJECTS:
        normal = fit(subject.build, subject.recipe, data, settings.epochs, odo=False)
        ordered = fit(subject.build, subject.recipe, data, settings.epochs)
        most = removable(ordered)
        for name, nested in (("normal, random", normal), ("ODO, random", ordered)):
            draw = random.Random(1)
            for i in range(settings.points + 1):
                removed = round(most * i / settings.points)
                repeats = 1 if removed in (0, most) else settings.repeats
                found = [
                    shipped(nested, random_subnet(nested, removed, draw), data)
                    for _ in range(repeats)
                ]
                rows.append(point(subject.name, name, removed / most, found))
        for removed, subnet in search(ordered, data, settings).items():
            score = shipped(ordered, subnet, data)
            rows.append(point(subject.name, "ODO, search", removed / most, [score]))
        print(f"{subject.name}: {most} removable blocks, done")
    return rows


def point(network: str, curve: str, removed: float, found: list[float]) -> dict[str, Any]:
    """One point of a curve: mean, deviation and best of what was found."""
    deviation = statistics.stdev(found) if len(found) > 1 else 0.0
    return {
        "network": network,
        "curve": curve,
        "removed": round(removed, 4),
        "mean": round(statistics.mean(found), 2),
        "deviation": round(deviation, 2),
        "max": round(max(found), 2),
    }


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Mean with deviation, and the maximum, one panel a network."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(row["network"] for row in rows))
    picture, axes = pyplot.subplots(1, len(names), figsize=(4.5 * len(names), 3.8), sharey=True)
    for axis, name in zip(axes, names, strict=True):
        for i, curve in enumerate(("normal, random", "ODO, random", "ODO, search")):
            chosen = [r for r in rows if r["network"] == name and r["curve"] == curve]
            x, mean = [100 * r["removed"] for r in chosen], [r["mean"] for r in chosen]
            deviation = np.array([r["deviation"] for r in chosen])
            axis.plot(x, mean, color=f"C{i}", label=curve)
            axis.fill_between(x, mean - deviation, mean + deviation, color=f"C{i}", alpha=0.2)
            if curve != "ODO, search":
                axis.plot(x, [r["max"] for r in chosen], color=f"C{i}", linestyle=":")
        axis.set(title=name, xlabel="removed blocks, %")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("accuracy, %")
    axes[0].legend(loc="lower left")
    picture.tight_layout()
    picture.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(picture)


# --- ablations ------------------------------------------------------------------------------------

SHARES = (1.0, 0.75, 0.5, 0.25, 0.125)


def ablations(data: Data, settings: Settings) -> list[dict[str, Any]]:
    """Accuracy at uniform widths for each choice, one choice changed at a time."""
    build = SUBJECTS[2].build
    rows: list[dict[str, Any]] = []

    def add(choice: str, nested: NestedModel, run: Callable[[Subnet], float]) -> None:
        space = nested.space
        scores = {f"{s:.1%}": round(run(space.at(s)), 2) for s in SHARES}
        rows.append({"choice": choice, **scores})

    def running(nested: NestedModel, net: nn.Module, subnet: Subnet) -> float:
        nested.train()  # drops the statistics that were re-estimated for what shipped
        nested.eval()
        with nested.activate(subnet):
            return accuracy(net, data.test)

    base = fit(build, f"fn3-channel{{{PAPER}}}", data, settings.epochs)
    add("base: no core, hidden, no scaling, re-estimated", base, lambda s: shipped(base, s, data))
    for rule in ("none", "expected", "conditional"):
        base.scaling = rule
        add(f"scaling {rule}, as trained", base, lambda s: running(base, base, s))
        if rule != "none":
            add(f"scaling {rule}, re-estimated", base, lambda s: shipped(base, s, data))
    base.scaling = "none"
    for core in (0.125, 0.35):
        cored = fit(build, f"fn3-channel{{core={core},{PAPER}}}", data, settings.epochs)
        add(f"core {core}", cored, lambda s, n=cored: shipped(n, s, data))
    every = fit(build, f"fn3-channel{{where=all,{PAPER}}}", data, settings.epochs)
    add("where=all", every, lambda s: shipped(every, s, data))
    for before in (False, True):
        torch.manual_seed(0)
        recipe = f"fn3-channel{{{PAPER}}}"
        nested = nestify.transform(build(data.train[0][0]), recipe, (data.train[0][:2],))
        masked = nested.masked(before_norm=before)
        train(masked, data.train, settings.epochs)
        where = "before" if before else "after"
        add(
            f"masks {where} the norm, as trained",
            nested,
            lambda s, n=nested, m=masked: running(n, m, s),
        )
    return rows


# --- results --------------------------------------------------------------------------------------


def write(rows: list[dict[str, Any]], path: Path) -> None:
    """One CSV file."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    print(f"wrote {path}")


def main(arguments: list[str] | None = None) -> None:
    """Train, remove, plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few steps of everything")
    parser.add_argument("--data", nargs=2, metavar=("NAME", "FOLDER"), help="mnist or cifar10")
    parser.add_argument("--out", type=Path, default=Path("docs/fn3"))
    options = parser.parse_args(arguments)
    loaders = {"mnist": mnist, "cifar10": cifar10}
    if options.data is None:
        data = digits()
    elif options.data[0] in loaders:
        data = loaders[options.data[0]](Path(options.data[1]))
    else:
        parser.error(f"--data knows {', '.join(loaders)}, not {options.data[0]!r}")
    settings = QUICK if options.quick else Settings()
    options.out.mkdir(parents=True, exist_ok=True)
    rows = figure(data, settings)
    write(rows, options.out / "figure4.csv")
    plot(rows, options.out / "figure4.png")
    print(f"wrote {options.out / 'figure4.png'}")
    write(ablations(data, settings), options.out / "ablations.csv")


if __name__ == "__main__":
    main()
