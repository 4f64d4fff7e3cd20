"""The figures of Deep Roots on networks trained here: filter covariance, savings layer by layer.

    python benchmarks/deep_roots_figures.py [OUT]

Figs. 6, 11 and 13 for NiN and its roots, trained as ``deep_roots_digits.py`` trains them and looked
at on the test images; Fig. 15 for ResNet-50 and its root-64, which needs no training. With each
layer that has filter groups goes the share of its whitened covariance (squared) that lies in the
blocks of its groups, beside the share that blocks of that size have of the original's.
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path

import torch
from deep_roots_digits import Data, digits, train
from support.clock import Row, show, write
from torch import Tensor, nn

import nestify
from examples.models.nin import NiN
from examples.models.resnet50_caffe import ResNet50
from nestify import analysis

RECIPES = ("original", "root-2", "root-4", "root-8", "root-16")
LAYERS = tuple(f"conv{stage}{letter}.conv" for stage in (1, 2, 3) for letter in "abc")
GROUPED = {"conv2a.conv": "conv1c.conv", "conv3a.conv": "conv2c.conv"}


def trained(recipe: str, data: Data, width: float, epochs: int) -> nn.Module:
    """NiN, or its rewrite by ``recipe``, trained from new weights."""
    torch.manual_seed(0)
    model: nn.Module = NiN(width=width)
    if recipe == "original":
        train(model, data, epochs, seed=0)
        return model
    nested = nestify.transform(model, recipe, (data.test[0][:2],))
    train(nested, data, epochs, seed=0)
    return nested.extract({})


def in_blocks(matrix: Tensor, groups: int) -> float:
    """The share of the squared entries inside ``groups`` blocks on the diagonal."""
    rows, columns = matrix.shape
    inside = torch.block_diag(*[torch.ones(rows // groups, columns // groups)] * groups)
    energy = matrix.square()
    return float(energy[inside.bool()].sum() / energy.sum())


def main() -> None:
    """Train, analyse, draw; print and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, metavar="OUT", nargs="?", default=Path("out/deep-roots"))
    parser.add_argument("--width", type=float, default=1 / 6, help="of NiN's layers")
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    data = digits()
    images = data.test[0].split(64)
    between: dict[str, dict[str, Tensor]] = {}
    within: dict[str, dict[str, Tensor]] = {}
    rows: list[Row] = []
    for recipe in RECIPES:
        net = trained(recipe, data, options.width, options.epochs)
        found = analysis.filter_covariances(net, LAYERS, images)
        pairs = list(pairwise(LAYERS))
        between[recipe] = {
            f"{a[:6]}, {b[:6]}": matrix for (a, b), matrix in zip(pairs, found, strict=True)
        }
        within[recipe] = {
            layer[:6]: analysis.filter_correlation(net, layer, images) for layer in LAYERS
        }
        for layer, before in GROUPED.items():
            groups = net.get_submodule(layer).groups
            if isinstance(groups, int) and groups > 1:
                pair = f"{before[:6]}, {layer[:6]}"
                rows.append(
                    {
                        "network": recipe,
                        "layers": pair,
                        "groups": groups,
                        "in blocks": in_blocks(between[recipe][pair], groups),
                        "original": in_blocks(between["original"][pair], groups),
                    }
                )
    pair = "conv2c, conv3a"
    one = {pair: {recipe: row[pair] for recipe, row in between.items()}}
    analysis.plot_matrices(one, options.out / "fig6.png")
    analysis.plot_matrices(within, options.out / "fig11.png")
    analysis.plot_matrices(between, options.out / "fig13.png")
    with torch.device("meta"):
        rooted = nestify.transform(ResNet50(), "root-64", (torch.empty(1, 3, 224, 224),))
    savings = analysis.layer_savings(rooted, "caffe")
    analysis.plot_layer_savings(savings, options.out / "fig15.png")
    show("Whitened covariance inside the blocks of the filter groups", rows)
    write("deep_roots_figures", {"rows": rows})


if __name__ == "__main__":
    main()
