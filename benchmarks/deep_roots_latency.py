"""Deep Roots on this CPU: time of NiN and ResNet-50 and of their roots, in torch and onnxruntime.

    python benchmarks/deep_roots_latency.py                      # on an otherwise idle machine
    python benchmarks/deep_roots_latency.py --networks nin --rounds 1 --side 16   # does it work?

Claim (Tables 2 and 4): roots are faster on a CPU, ResNet-50 as root-16 takes 0.77 of the time. Each
root is the extracted network of ``nestify.transform(original, "root-N")``. All networks of a table
are timed in turns, round by round, so that a slow spell of the machine falls on all of them; a
figure is the median over rounds of the time per image, its ratio that of the medians. The paper's
ratios are from Caffe with MKL on two 10-core Xeons, ResNet-50 at batch 10.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from support.clock import Row, show, write
from torch import nn

import nestify
from examples.models.nin import NiN
from examples.models.resnet50_caffe import ResNet50

MIN_S = 0.3  # of one measurement; shorter calls are repeated


class Table(NamedTuple):
    """One table of the paper: the network, its input, and CPU milliseconds by recipe."""

    make: Callable[[], nn.Module]
    side: int
    batch: int
    paper_ms: dict[str, float]


TABLES = {
    "nin": Table(
        NiN,
        32,
        16,
        {"original": 39.0, "root-2": 31.2, "root-4": 27.6, "root-8": 24.4, "root-16": 23.0},
    ),
    "resnet50": Table(
        ResNet50,
        224,
        4,
        {
            "original": 621,
            "root-2": 520,
            "root-4": 566,
            "root-8": 519,
            "root-16": 479,
            "root-32": 469,
            "root-64": 426,
        },
    ),
}


def onnxruntime_runner(model: nn.Module, x: torch.Tensor, threads: int) -> Callable[[], object]:
    """A call of the exported model in onnxruntime; the file is checked on the way."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        nestify.export(model, path, example_inputs=(x,))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(
            path.read_bytes(), options, providers=["CPUExecutionProvider"]
        )
    feed = {session.get_inputs()[0].name: x.numpy()}
    return lambda: session.run(None, feed)


def torch_runner(model: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    """A call of the model in torch, without gradients."""

    def run() -> object:
        with torch.inference_mode():
            return model(x)

    return run


def once(run: Callable[[], object]) -> float:
    """Milliseconds of one call: the mean of as many as fill ``MIN_S``."""
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < MIN_S or not count:
        run()
        count += 1
    return (time.perf_counter() - start) / count * 1e3


def measure(name: str, options: argparse.Namespace) -> list[Row]:
    """One table: every network in every engine, in turns."""
    table = TABLES[name]
    batch, side = options.batch or table.batch, options.side or table.side
    x = torch.randn(batch, 3, side, side)
    runners: dict[tuple[str, str], Callable[[], object]] = {}
    costs: dict[str, nestify.Cost] = {}
    for recipe in table.paper_ms:
        torch.manual_seed(0)
        model = table.make().eval()
        if recipe != "original":
            model = nestify.transform(model, recipe, (x,)).extract({}, verify=False)
        costs[recipe] = nestify.estimate(model, (x,), convention="caffe")
        runners[recipe, "torch"] = torch_runner(model, x)
        runners[recipe, "onnxruntime"] = onnxruntime_runner(model, x, options.threads)
        print(f"{name}, {recipe}: ready", flush=True)
    times: dict[tuple[str, str], list[float]] = {key: [] for key in runners}
    for run in runners.values():
        run()
    for _ in range(options.rounds):
        for key, run in runners.items():
            times[key].append(once(run) / batch)
    median = {key: statistics.median(found) for key, found in times.items()}
    rows: list[Row] = []
    for recipe, paper in table.paper_ms.items():
        row: Row = {"network": recipe, "MACs": costs[recipe].macs / costs["original"].macs}
        for engine in ("torch", "onnxruntime"):
            row[f"{engine} ms"] = median[recipe, engine]
            row[f"{engine} ratio"] = median[recipe, engine] / median["original", engine]
        row["paper ratio"] = paper / table.paper_ms["original"]
        rows.append(row)
    return rows


def main() -> None:
    """Measure the tables, print and write them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--networks", nargs="+", default=list(TABLES), choices=list(TABLES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, help="images at once, if not the table's")
    parser.add_argument("--side", type=int, help="pixels of a side, if not the table's")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore", nestify.NestifyWarning)
    figures: Row = {}
    for name in options.networks:
        figures[name] = measure(name, options)
        table = TABLES[name]
        batch, side = options.batch or table.batch, options.side or table.side
        show(f"{name}, batch {batch} at {side} x {side}, time per image", figures[name])
    write("deep_roots_latency", {"threads": options.threads, **figures})


if __name__ == "__main__":
    main()
