"""An evaluation that starts in the middle gives the same bits as one that does not."""

from __future__ import annotations

import copy
import random
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import fx, nn
from torch.utils import _pytree as pytree

import nestify
from nestify.graph.graph import Graph
from nestify.runtime import prefix_cuts as cuts
from nestify.runtime.prefix_store import State, States
from tests.fuzz.build import build as build_fuzz
from tests.fuzz.build import example_inputs as fuzz_inputs
from tests.fuzz.build import model_of
from tests.fuzz.chunks import Settings, model_spec
from tests.fuzz.prelude import double_precision
from tests.fuzz.table import form_table
from tests.laws.equalities import EVERYTHING
from tests.laws.generator import ModelSpec, build, example_inputs, specs
from tests.runtime.prefix.evaluations import Outputs, evaluate, neighbours, nest, same
from tests.runtime.prefix.subjects import SUBJECTS, Batch

FORMS = form_table()
LIMITS = [0, 20_000, 300_000, 1 << 30]
Visit = tuple[nestify.Subnet, list[int]]


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[tuple[State, Any]]:
    """Every state that is kept, with a copy of what it held at that time."""
    found: list[tuple[State, Any]] = []
    add = States.add

    def noted(states: States, state: State) -> None:
        copied = [v.clone() for v in pytree.tree_leaves(state.values)]
        found.append((state, copied))
        add(states, state)

    monkeypatch.setattr(States, "add", noted)
    return found


def untouched(kept: list[tuple[State, Any]], states: States) -> bool:
    """What is still kept is what was kept."""
    current = [pair for pair in kept if states.get(pair[0].key) is pair[0]]
    return all(same(state.values, copied) for state, copied in current)


def visits(nested: nestify.NestedModel, count: int, batches: int, seed: int = 0) -> list[Visit]:
    """Subnets of a random walk, some of them again, each with an order of the data."""
    draw = random.Random(seed)
    subnets = neighbours(nested.space, count, seed)
    subnets += draw.sample(subnets, count // 2)
    return [(subnet, draw.sample(range(batches), batches)) for subnet in subnets]


def walk(nested: nestify.NestedModel, plan: list[Visit], batches: list[Batch]) -> list[Outputs]:
    """Outputs of all visits, in the state and with the noise of a fresh start."""
    torch.manual_seed(1)
    outputs: list[Outputs] = []
    for subnet, order in plan:
        with nested.activate(subnet):
            outputs.append(evaluate(nested, [batches[i] for i in order]))
    return outputs


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("name", SUBJECTS)
def test_reuse_changes_no_bit(name: str, limit: int, kept: list[tuple[State, Any]]) -> None:
    nested, batches = nest(name)
    plan = visits(nested, 12, len(batches))
    state = copy.deepcopy(nested.state_dict())
    with torch.no_grad():
        expected, noise = walk(nested, plan, batches), torch.get_rng_state()
        final = copy.deepcopy(nested.state_dict())
        nested.load_state_dict(state)
        with nested.reusing(limit_bytes=limit) as reuse:
            found = walk(nested, plan, batches)
            assert reuse.bytes_held <= limit
            assert untouched(kept, reuse.states)
    assert all(map(same, found, expected))
    assert torch.equal(noise, torch.get_rng_state())
    assert all(map(same, nested.state_dict().values(), final.values()))
    assert reuse.hits > 10 or limit < 1 << 30
    assert reuse.bytes_held == 0


@pytest.mark.parametrize("name", SUBJECTS)
def test_cuts_lie_where_nothing_that_crosses_is_written(name: str) -> None:
    """All states of a pass outlive it."""
    nested, batches = nest(name)
    with torch.no_grad(), nested.reusing() as reuse:
        evaluate(nested, batches)
        marks = sum(
            len(reuse.cuts.of(nested._bind(nested.space.largest(), len(batch[0]))))  # pyright: ignore[reportPrivateUsage]  # how many there should be
            for batch in batches
        )
        assert len(reuse.states) == marks > 0


@pytest.mark.parametrize("name", ["residual", "dense", "noise", "vit"])
def test_writes_into_what_is_kept_are_seen_where_no_analysis_saw_them(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some op may hand on its operand unknown to the table."""

    def alone(graph: Graph) -> dict[fx.Node, fx.Node]:
        return {node: node for node in graph.nodes}

    def nothing(node: fx.Node) -> list[fx.Node]:
        return []

    monkeypatch.setattr(cuts, "roots", alone)
    monkeypatch.setattr(cuts, "written_operands", nothing)
    nested, batches = nest(name)
    plan = visits(nested, 8, len(batches))
    with torch.no_grad():
        expected = walk(nested, plan, batches)
        with nested.reusing() as reuse:
            assert all(map(same, walk(nested, plan, batches), expected))
            assert reuse.hits > 0


@settings(max_examples=40)
@given(spec=specs())
def test_generated_models(spec: ModelSpec) -> None:
    model = build(spec, 0).double()
    inputs = [_doubled(example_inputs(spec, n, n)) for n in (2, 2, 3)]
    check_generated(model, inputs)


@pytest.mark.parametrize("part", range(3))
def test_models_grown_from_the_op_table(part: int) -> None:
    hits = 0
    for index in range(12 * part, 12 * part + 12):
        spec, _ = model_spec(Settings(seed=5), index, FORMS)
        builder = build_fuzz(spec, FORMS)
        with double_precision():
            inputs = [fuzz_inputs(builder), fuzz_inputs(builder, seed=1)]
            hits += check_generated(model_of(builder, spec), inputs)
    assert hits > 0


def check_generated(model: nn.Module, batches: list[Batch]) -> int:
    """Reuse changes no bit of what a generated model computes; how often it was of use."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            nested = nestify.transform(model.eval(), EVERYTHING, batches[0]).eval()
        except (nestify.UsageError, nestify.CaptureError):
            return 0  # nothing is elastic, or torch.export refuses
    if nested.graph.batch is None:
        batches = batches[:2]
    plan = visits(nested, 6, len(batches))
    with torch.no_grad():
        expected = walk(nested, plan, batches)
        with nested.reusing(limit_bytes=1 << 24) as reuse:
            assert all(map(same, walk(nested, plan, batches), expected))
    return reuse.hits


def _doubled(batch: Batch) -> Batch:
    return tuple(x.double() if x.is_floating_point() else x for x in batch)
