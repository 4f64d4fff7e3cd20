"""Exactness of the examples: 20 random subnets each, nested = extracted = onnxruntime.

    python benchmarks/exactness.py [--subnets 20] [--no-onnx] [model ...]

For each model of ``examples/``: the largest subnet must equal the original bit for bit; for random
subnets (all elastic groups, independent sizes) the largest relative error of extracted against
nested in float32 and float64, of the extracted network against onnxruntime, and, on random kept
positions of every group that no statistic spans, of the extracted network against the original
with the removed positions silenced (float64). MobileNetV2 and ResNet-50 run at 96 x 96 in float64.
"""

from __future__ import annotations

import argparse
import importlib
import random
import tempfile
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

import nestify
from nestify.dims import dims_of
from nestify.support.closeness import relative_error
from tests.fuzz.oracle import flat_inputs, silenced

EXAMPLES = ("mlp", "mobilenet_v2", "resnet50", "vit")
RECIPE = "fn3-channel{where=all}+fn3-neuron{where=all}+fn3-head+fn3-path"


def load(name: str) -> tuple[torch.nn.Module, tuple[Any, ...]]:
    """A model of examples/ and its inputs."""
    module = importlib.import_module(f"examples.{name}")
    inputs = module.example_inputs
    return module.model().eval(), inputs() if callable(inputs) else inputs


def nested_errors(nested: Any, subnets: list[Any]) -> float:
    """Largest relative difference of extracted and nested over the subnets."""
    worst = 0.0
    for subnet in subnets:
        slim = nested.extract(subnet, verify=False)
        with nested.activate(subnet), torch.no_grad():
            worst = max(
                worst, relative_error(nested(*nested.example_inputs), slim(*nested.example_inputs))
            )
    return worst


def onnx_error(nested: Any, subnets: list[Any]) -> float:
    """Largest relative difference that export measured in onnxruntime over the subnets."""
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for subnet in subnets:
            slim = nested.extract(subnet, verify=False)
            path = Path(folder) / "slim.onnx"
            report = nestify.export(slim, path, example_inputs=nested.example_inputs)
            worst = max(worst, report.error)
    return worst


def _traced(nested: Any) -> tuple[Any, ...]:
    """Inputs of the batch size that the graph's literals spell."""
    times = 2 if nested.graph.capture.tiled else 1
    return tuple(torch.cat([x] * times) for x in nested.example_inputs)


def silenced_error(nested: Any, count: int) -> float:
    """Largest relative difference to the original with removed positions silenced."""
    graph, draw, worst = nested.graph, random.Random(0), 0.0
    spanned = {d for call in graph.calls.values() for e in call.normalised for d in dims_of(e)}
    for _ in range(count):
        picks = {
            group.name: draw.sample(range(group.size), draw.randint(group.size // 2, group.size))
            for group in graph.groups
            if group.dim not in spanned
        }
        flat = flat_inputs(_traced(nested))
        with torch.no_grad():
            full = silenced(graph, dict(nested.named_tensors()), nested.keep(picks), flat)
            slim = nested.extract(picks, verify=False)
            worst = max(worst, relative_error(full, [slim(*_traced(nested))]))
    return worst


def row(name: str, count: int, onnx: bool) -> list[Any]:
    """The figures of one model."""
    model, inputs = load(name)
    nested = nestify.transform(model, RECIPE, inputs).eval()
    generator = torch.Generator().manual_seed(0)
    subnets = [nested.space.sample(generator) for _ in range(count)]
    with torch.no_grad():
        same = torch.equal(nested(*inputs), model(*inputs))
    single = nested_errors(nested, subnets)
    ort = onnx_error(nested, subnets) if onnx else None
    small = tuple(x[..., :96, :96] if name in ("mobilenet_v2", "resnet50") else x for x in inputs)
    double = nestify.transform(model.double(), RECIPE, tuple(x.double() for x in small)).eval()
    return [
        name,
        count,
        same,
        single,
        nested_errors(double, subnets),
        ort,
        silenced_error(double, count),
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=EXAMPLES)
    parser.add_argument("--subnets", type=int, default=20)
    parser.add_argument("--no-onnx", action="store_true")
    options = parser.parse_args()
    rows = []
    for name in options.models:
        rows.append(row(name, options.subnets, not options.no_onnx))
        print(f"{name} done", flush=True)
    headers = [
        "model",
        "subnets",
        "largest = original",
        "float32",
        "float64",
        "onnxruntime",
        "silenced (float64)",
    ]
    print(tabulate(rows, headers, tablefmt="github", floatfmt=".1e"))


if __name__ == "__main__":
    main()
