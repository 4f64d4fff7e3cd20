"""The laws on generated models: 510 in the suite, drawn by hypothesis, 20 subnets each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject
from torch import nn

import nestify
from nestify.compare import relative_error
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


@pytest.mark.parametrize("seed", range(12))
def test_float32_and_onnxruntime_agree(seed: int, tmp_path: Path) -> None:
    """One random subnet: nested, extracted and (checked inside export) onnxruntime, at 1e-5."""
    spec = random_spec(1000 + seed, without=("interpolate",))
    model = build(spec, seed).eval()
    inputs = example_inputs(spec, 2, seed)
    if not nestify.trace(model, inputs).groups:
        pytest.skip("this model has nothing to choose")
    nested = nestify.transform(model, EVERYTHING, inputs).eval()
    subnet = nested.space.sample(torch.Generator().manual_seed(seed))
    slim = nested.extract(subnet)
    with nested.activate(subnet), torch.no_grad():
        assert relative_error(nested(*inputs), slim(*inputs)) <= 1e-5
    nestify.export(slim, tmp_path / "slim.onnx", example_inputs=inputs)
