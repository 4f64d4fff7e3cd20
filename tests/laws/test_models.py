"""The laws on generated models: 510 in the suite, drawn by hypothesis, 20 subnets each."""

from __future__ import annotations

import importlib
from itertools import count as count_from
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject
from torch import nn

import nestify
from nestify.support.closeness import relative_error
from tests.laws.equalities import EVERYTHING, check_laws
from tests.laws.generator import ModelSpec, State, build, example_inputs, random_spec, script, specs

STARTS = {
    "vector": State("vec", (12,)),
    "tokens": State("seq", (6, 8)),
    "ids": State("ids", (5,)),
    "signal": State("map", (4, 8)),
    "image": State("map", (3, 6, 8)),
    "volume": State("map", (4, 4, 4, 5)),
}


def doubled(batch: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.double() if x.is_floating_point() else x for x in batch)


def check(spec: ModelSpec, subnets: int, seed: int = 0) -> int:
    """The laws in float64, at batch 2 and 3; a failure prints a script that shows it."""
    model = build(spec, seed).double()
    batches = [doubled(example_inputs(spec, n, seed + n)) for n in (2, 3)]
    try:
        return check_laws(model, batches[0], subnets=subnets, seed=seed, other=batches[1])
    except Exception:
        print(script(spec, seed))
        raise


@pytest.mark.parametrize("start", STARTS)
@settings(max_examples=85)
@given(data=st.data())
def test_generated_models_obey_the_laws(start: str, data: DataObject) -> None:
    check(data.draw(specs(start=STARTS[start])), subnets=20)


@pytest.mark.campaign
@given(spec=specs())
def test_many_generated_models_obey_the_laws(spec: ModelSpec) -> None:
    check(spec, subnets=20)


def test_most_generated_models_have_something_to_choose() -> None:
    elastic = [len(nestify.trace(*_float64(seed)).groups) for seed in range(40)]
    assert sum(n > 0 for n in elastic) >= 30, "a law about nothing proves nothing"


def _float64(seed: int) -> tuple[nn.Module, tuple[Any, ...]]:
    spec = random_spec(seed)
    return build(spec, seed).double(), doubled(example_inputs(spec, 2, seed))


@pytest.mark.parametrize("name", ["mlp", "mobilenet_v2", "resnet50", "vit"])
def test_20_subnets_of_each_example(name: str) -> None:
    """Nested and extracted in float32; benchmarks/exactness.py adds float64 and onnxruntime."""
    example: Any = importlib.import_module(f"examples.{name}")
    inputs = (
        example.example_inputs() if callable(example.example_inputs) else example.example_inputs
    )
    net = nestify.transform(example.model(), EVERYTHING, inputs).eval()
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        subnet = net.space.sample(generator)
        slim = net.extract(subnet, verify=False)
        with net.activate(subnet), torch.no_grad():
            assert relative_error(net(*inputs), slim(*inputs)) <= 1e-5


def elastic_models(count: int, start: int) -> list[tuple[int, ModelSpec]]:
    """The first generated models from ``start`` on that leave something to choose."""
    specs = ((seed, random_spec(seed, without=("interpolate",))) for seed in count_from(start))
    elastic = (
        (seed, spec)
        for seed, spec in specs
        if nestify.trace(build(spec, seed), example_inputs(spec, 2, seed)).groups
    )
    return list(islice(elastic, count))


@pytest.mark.parametrize("chunk", range(4))
def test_float32_and_onnxruntime_agree(chunk: int, tmp_path: Path) -> None:
    """One random subnet each of 4 models: nested, extracted, onnxruntime (inside export)."""
    for seed, spec in elastic_models(4, 1000 + 100 * chunk):
        model, inputs = build(spec, seed), example_inputs(spec, 2, seed)
        net = nestify.transform(model, EVERYTHING, inputs).eval()
        subnet = net.space.sample(torch.Generator().manual_seed(seed))
        slim = net.extract(subnet)
        with net.activate(subnet), torch.no_grad():
            assert relative_error(net(*inputs), slim(*inputs)) <= 1e-5
        report = nestify.export(slim, tmp_path / "slim.onnx", example_inputs=inputs)
        assert report.error <= 1e-5
