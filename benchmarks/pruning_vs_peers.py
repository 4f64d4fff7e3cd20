"""Pruning a trained network that was never nested, against torch-pruning at the same MACs.

    python benchmarks/pruning_vs_peers.py [--method fn3] [--by hessian] [--seeds 3] [--only NAME]
        [--folds 5]

Each network is trained dense and then pruned to 50 % and 30 % of its MACs, by torch-pruning
(global, iterative in 200 steps, by group magnitude and by group Taylor importance) and by nestify's
``rank`` and search, whose bound is what torch-pruning reached. Both see training images only, both
get BatchNorm statistics re-estimated, and both are fine-tuned by the same short recipe; what
nestify's least squares (``refit``) give without any training stands beside it. Writes
``results/pruning_vs_peers.json``; runs of other networks and seeds stay in it. With ``--folds``
every image is a test image once, of networks that did not see it: ``results/pruning_folds.json``.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import statistics
from typing import Any

import torch
from torch import nn

from benchmarks.support import digits
from benchmarks.support.clock import RESULTS, Row, machine, show, write
from benchmarks.support.pruning import (
    IMPORTANCES,
    SUBJECTS,
    Data,
    Key,
    Subject,
    accuracy,
    macs,
    peer,
    ranked,
    searched,
    train,
)

NAME, FOLDED = "pruning_vs_peers", "pruning_folds"
SHARES = (0.5, 0.3)
KEYS = ("network", "MACs", "importance", "seed", "fold")


def tuned(net: nn.Module, subject: Subject, data: Data, seed: int) -> tuple[float, float]:
    """Test accuracy before and after the short fine-tuning, of which the mean of some is taken.

    Each sees the data in an order of its own.
    """
    after: list[float] = []
    for i in range(subject.repeats):
        one = copy.deepcopy(net)
        train(one, data.train, subject.tuning, subject.rate / 2, seed + 100 * (i + 1))
        after.append(accuracy(one, data.test))
    return accuracy(net, data.test), statistics.mean(after)


def compare(subject: Subject, seed: int, data: Data, by: str, method: str) -> list[Row]:
    """One network of one seed: nestify beside each way of torch-pruning, at its MACs."""
    torch.manual_seed(seed)
    net = train(subject.build(), data.train, subject.epochs, subject.rate, seed)
    whole = macs(net, data)
    theirs: dict[Key, nn.Module] = {}
    for importance in IMPORTANCES:
        theirs |= peer(net, subject, data, SHARES, importance)
    bounds = {key: macs(pruned, data) for key, pruned in theirs.items()}
    nested, batches = ranked(net, subject, data, by), list(data.train.x.split(256))
    subnets = searched(nested, subject, data, bounds, method, seed)
    rows: list[Row] = []
    dense = accuracy(net, data.test)
    for key, pruned in theirs.items():
        row: Row = {"network": subject.name, "MACs": f"{key[1]:.0%}", "importance": key[0]}
        row |= {"seed": seed, "dense": dense}
        ours = nested.extract(subnets[key], calibrate=batches)
        refitted = nested.extract(subnets[key], calibrate=batches, refit=True)
        row["nestify refitted"] = accuracy(refitted, data.test)
        for tool, one in (("nestify", ours), ("torch-pruning", pruned)):
            row[f"{tool} MACs"] = 100 * macs(one, data) / whole
            row[f"{tool} untuned"], row[tool] = tuned(one, subject, data, seed)
        rows.append(row)
        print(row, flush=True)
    return rows


def table(rows: list[Row]) -> list[Row]:
    """Means over seeds, by network, share and importance."""
    cases: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        cases.setdefault((row["network"], row["MACs"], row["importance"]), []).append(row)
    found: list[Row] = []
    for (network, share, importance), mine in cases.items():
        line: Row = {"network": network, "MACs": share, "torch-pruning by": importance}
        line["seeds"] = len({row["seed"] for row in mine})
        for name in [name for name in mine[0] if name not in KEYS]:
            line[name] = statistics.mean(row[name] for row in mine)
        line["ahead by"] = line["nestify"] - line["torch-pruning"]
        ahead = [row["nestify"] - row["torch-pruning"] for row in mine]
        line["sd"] = statistics.stdev(ahead) if len(ahead) > 1 else 0.0
        found.append(line)
    return found


def main() -> None:
    """Train, prune, fine-tune, print, write."""
    parser = argparse.ArgumentParser(description="rank and search against torch-pruning")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--method", default="fn3", help="a method of nestify.search")
    parser.add_argument("--by", default="auto", help="the importance of rank")
    parser.add_argument("--only", default="", help="networks whose names hold this")
    parser.add_argument("--folds", type=int, default=0, help="cross-validate in so many parts")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    seeds = range(options.first, options.first + options.seeds)
    chosen = [subject for subject in SUBJECTS if options.only in subject.name]
    parts = digits.folds(options.folds) if options.folds else [digits.digits()]
    rows: list[Row] = []
    for subject, seed, fold in itertools.product(chosen, seeds, range(len(parts))):
        data = Data(*map(subject.sees, parts[fold]))
        found = compare(subject, seed, data, options.by, options.method)
        rows += [row | {"fold": fold} for row in found] if options.folds else found
    show("Accuracy, %, at the same MACs after the same fine-tuning", table(rows))
    file = FOLDED if options.folds else NAME
    rows += kept(file, {(row["network"], row["seed"]) for row in rows})
    names = [subject.name for subject in SUBJECTS]
    rows.sort(key=lambda row: (names.index(row["network"]), row["seed"]))
    write(file, {"method": options.method, "by": options.by, "table": table(rows), "runs": rows})


def kept(file: str, anew: set[tuple[str, int]]) -> list[Row]:
    """The other runs, by network and seed, that the results file has."""
    path = RESULTS / f"{file}.json"
    runs: list[Row] = json.loads(path.read_text())["runs"] if path.exists() else []
    return [row for row in runs if (row["network"], row["seed"]) not in anew]


if __name__ == "__main__":
    main()
