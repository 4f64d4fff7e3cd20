"""The generator of random models: what it makes is valid, varied, repeatable and well scaled."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from tests.laws.generator import (
    KINDS,
    ModelSpec,
    State,
    build,
    coverage,
    example_inputs,
    op,
    random_spec,
    script,
    specs,
)


def leaves(answer: Any) -> list[torch.Tensor]:
    if isinstance(answer, dict):
        return list(answer.values())
    return [answer] if isinstance(answer, torch.Tensor) else list(answer)


def run(model: torch.nn.Module, spec: ModelSpec, batch: int = 2) -> list[torch.Tensor]:
    with torch.no_grad():
        return leaves(model(*example_inputs(spec, batch)))


def check(spec: ModelSpec) -> None:
    model = build(spec)
    for batch in (2, 3):
        values = run(model, spec, batch)
        assert all(value.shape[0] == batch and value.isfinite().all() for value in values)
        last = values[0]
        assert 1e-3 < last.abs().max() < 1e4
        assert last.std() > 1e-3 * last.abs().max(), "a constant output shows nothing"


@pytest.mark.parametrize("decade", range(10))
def test_models_run(decade: int) -> None:
    for seed in range(30 * decade, 30 * decade + 30):
        spec = random_spec(seed)
        try:
            check(spec)
        except Exception as error:
            error.add_note(f"seed {seed}: {spec!r}")
            raise


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(specs())
def test_strategy_gives_models_that_run(spec: ModelSpec) -> None:
    run(build(spec), spec)


@pytest.mark.parametrize("decade", range(6))
def test_models_export(decade: int) -> None:
    for seed in range(1000 + 10 * decade, 1010 + 10 * decade):
        spec = random_spec(seed, max_layers=8)
        model = build(spec)
        exported = torch.export.export(model, example_inputs(spec), strict=False).module()
        for ours, theirs in zip(run(model, spec), run(exported, spec), strict=True):
            torch.testing.assert_close(theirs, ours, msg=lambda text, s=spec: f"{text}\n{s!r}")


def test_single_and_double_precision_agree() -> None:
    for seed in range(60):
        spec = random_spec(seed)
        single = run(build(spec), spec)
        with torch.no_grad():
            wide = (x.double() if x.is_floating_point() else x for x in example_inputs(spec))
            double = leaves(build(spec).double()(*wide))
        for a, b in zip(single, double, strict=True):
            assert b.is_floating_point() and b.dtype == torch.float64
            assert (a - b).abs().max() <= 1e-5 * b.abs().max(), f"seed {seed}: {spec!r}"


def test_models_train() -> None:
    for seed in range(40):
        spec = random_spec(seed)
        model = build(spec).train()
        answer = leaves(model(*example_inputs(spec)))
        torch.stack([value.sum() for value in answer]).sum().backward()
        idle = [name for name, p in model.named_parameters() if p.grad is None]
        assert not idle, f"seed {seed}: {idle} of {spec!r}"


def test_equal_specs_and_seeds_give_equal_models() -> None:
    for seed in range(10):
        spec = random_spec(seed)
        assert spec == random_spec(seed)
        state = torch.random.get_rng_state()
        first, second, other = build(spec, 3), build(spec, 3), build(spec, 4)
        assert torch.equal(torch.random.get_rng_state(), state)
        pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
        assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)
        assert all(
            torch.equal(x, y) for x, y in zip(run(first, spec), run(second, spec), strict=True)
        )
        assert any(
            not torch.equal(x, y)
            for x, y in zip(first.parameters(), other.parameters(), strict=True)
        )


def test_every_kind_occurs_often() -> None:
    models = [random_spec(seed) for seed in range(2000)]
    count = coverage(models)
    assert {name: count[name] for name in KINDS if count[name] < 20} == {}
    assert {spec.form for spec in models} == {"one", "tuple", "dict"}
    assert {(spec.start.kind, spec.start.rank) for spec in models} == {
        ("ids", 0), ("vec", 0), ("seq", 1), ("map", 1), ("map", 2), ("map", 3),
    }  # fmt: skip


def test_repr_is_an_expression() -> None:
    for seed in range(50):
        spec = random_spec(seed)
        assert eval(repr(spec), {"ModelSpec": ModelSpec, "State": State, "op": op}) == spec


def test_kinds_can_be_left_out_and_the_input_chosen() -> None:
    start = State("map", (4, 6, 6))
    for seed in range(50):
        spec = random_spec(seed, max_layers=6, without=("dropout", "conv"), start=start)
        assert spec.start == start
        assert not {"dropout", "conv"} & {layer.kind for layer in spec.layers}


@pytest.mark.parametrize("seed", [1, 12])
def test_script_stands_alone(seed: int) -> None:
    spec = random_spec(seed)
    done = subprocess.run(
        [sys.executable, "-c", script(spec, 5)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "tensor(" in done.stdout
