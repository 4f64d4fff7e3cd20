"""An evaluation that starts in the middle gives the same bits as one that does not."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

import nestify
from nestify import cuts
from nestify.fuzz.build import build as build_fuzz
from nestify.fuzz.build import double_precision, model_of
from nestify.fuzz.build import example_inputs as fuzz_inputs
from nestify.fuzz.chunks import Settings, model_spec
from nestify.fuzz.table import form_table
from nestify.groups import Graph
from nestify.recognition import same_bits
from nestify.states import State, States
from tests.laws.equalities import EVERYTHING
from tests.laws.generator import ModelSpec, build, example_inputs, specs
from tests.reuse_models import SUBJECTS, WITH_NORMS, Batch, Masked

Outputs = list[list[Tensor]]
FORMS = form_table()
LIMITS = [0, 20_000, 300_000, 1 << 30]


def nest(name: str) -> tuple[nestify.NestedModel, list[Batch]]:
    """A nested model in eval, its weights away from where norms and gates are still, and data."""
    subject = SUBJECTS[name]
    torch.manual_seed(0)
    batches = [subject.batch(4), subject.batch(4), subject.batch(3)]
    model = subject.model()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand_like(tensor))
    nested = nestify.transform(model, subject.recipe, batches[0])
    return nested.eval(), batches


def neighbours(space: nestify.SearchSpace, count: int, seed: int = 0) -> list[nestify.Subnet]:
    """A random walk: each subnet differs from one before it in one or two units."""
    draw = random.Random(seed)
    found = [space.largest()]
    for _ in range(count - 1):
        sizes = dict(draw.choice(found[-3:]))
        for unit in draw.sample(space.units, min(draw.randint(1, 2), len(space.units))):
            sizes[unit.name] = draw.choice(unit.choices)
        found.append(nestify.Subnet(sizes))
    return found


def evaluate(nested: nestify.NestedModel, batches: list[Batch]) -> Outputs:
    """Flat outputs of each batch; inputs are new tensors each time, as a loader's are."""
    clones = [tuple(x.clone() for x in batch) for batch in batches]
    return [[y.clone() for y in pytree.tree_leaves(nested(*clone))] for clone in clones]


def same(left: Any, right: Any) -> bool:
    """Equal bit for bit, in the same layout."""
    a, b = pytree.tree_leaves(left), pytree.tree_leaves(right)
    return len(a) == len(b) and all(
        (x.shape, x.dtype, x.stride()) == (y.shape, y.dtype, y.stride()) and same_bits(x, y)
        for x, y in zip(a, b, strict=True)
    )


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


# --- bit for bit ----------------------------------------------------------------------------------


Visit = tuple[nestify.Subnet, list[int]]


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


# --- what is left out -----------------------------------------------------------------------------


def chain(layers: int = 6, width: int = 8) -> nestify.NestedModel:
    """Linear layers with an activation behind each; every inner width is a unit."""
    torch.manual_seed(0)
    pairs = [nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(layers)]
    return nestify.transform(nn.Sequential(*pairs), "fn3-neuron", (torch.ones(2, width),)).eval()


def test_the_prefix_is_skipped() -> None:
    nested, x = chain(), torch.randn(3, 8)
    with torch.no_grad(), nested.reusing() as reuse:
        nested(x)
        assert (reuse.hits, reuse.misses, reuse.steps_run, reuse.steps_skipped) == (0, 1, 12, 0)
        for layer in range(1, 5):
            skipped = reuse.steps_skipped
            with nested.activate({f"{layer}.0": 5}):
                nested(x.clone())
            assert reuse.steps_skipped - skipped == 2 * layer
        with nested.activate({"0.0": 5}):
            nested(x)  # nothing comes before the first unit
        assert (reuse.hits, reuse.misses) == (4, 2)


def test_dropped_layers_share_what_comes_before_and_behind_nothing() -> None:
    nested, batches = nest("residual")
    (unit,) = (unit.name for unit in nested.space.units if unit.kind == "layer")
    full = nested.space.largest()
    with torch.no_grad(), nested.reusing() as reuse:
        skipped: list[int] = []
        for size in (4, 3, 2, 1):
            before = reuse.steps_skipped
            with nested.activate(dict(full) | {unit: size}):
                evaluate(nested, batches[:1])
            skipped.append(reuse.steps_skipped - before)
    assert skipped[0] == 0
    assert skipped[1] > skipped[2] > skipped[3] > 0  # the last blocks are dropped first


def test_one_pass_larger_than_the_limit_still_hits() -> None:
    """The oldest state is not always the one that goes."""
    nested = chain(width=32)
    batches = [(torch.randn(64, 32),) for _ in range(12)]
    with torch.no_grad():
        with nested.reusing() as reuse:
            evaluate(nested, batches)
            whole = reuse.bytes_held
        with nested.reusing(limit_bytes=whole // 2) as reuse:
            for size in (32, 24, 16, 8):
                with nested.activate({"4.0": size}):
                    evaluate(nested, batches)
                assert whole // 4 < reuse.bytes_held <= whole // 2
            assert reuse.hits > 6


@pytest.mark.parametrize("what", ["noise", "buffer", "input"])
def test_noise_and_writes_are_never_left_out(what: str) -> None:
    nested, _ = nest(what)
    calls = nested.get_buffer("calls") if what == "buffer" else torch.zeros(6)
    x, before = torch.randn(3, 6), calls.clone()
    with torch.no_grad(), nested.reusing() as reuse:
        first = nested(x.clone())
        with nested.activate({nested.space.units[-1].name: 4}):
            given = x.clone()
            nested(given)
        assert reuse.hits == 1
        assert 0 < reuse.steps_skipped <= 6
        assert torch.equal(given, x * 0.5) == (what == "input")
        assert torch.allclose(calls, before + 2) == (what == "buffer")
        assert torch.equal(nested(x.clone()), first) == (what == "input")


# --- inputs ---------------------------------------------------------------------------------------


class Reciprocal(nn.Module):
    """Tells the zeros apart."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU())
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(torch.nan_to_num(1 / x, posinf=1.0, neginf=-1.0)))


def plainly(nested: nestify.NestedModel, *inputs: Tensor) -> Any:
    """The same evaluation by a copy, which reuses nothing."""
    return copy.deepcopy(nested)(*inputs)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([0.0, 1, 2], [-0.0, 1, 2]),
        ([1.0, 2, 3], [3.0, 1, 2]),
        ([float("nan"), 1, 2], [1.0, float("nan"), 2]),
    ],
)
def test_inputs_are_told_apart_by_their_bits(first: list[float], second: list[float]) -> None:
    torch.manual_seed(0)
    nested = nestify.transform(Reciprocal(), "fn3-neuron", (torch.ones(2, 3),)).eval()
    a, b = torch.tensor([first]), torch.tensor([second])
    with torch.no_grad(), nested.reusing() as reuse:
        for x in (a, b, a.clone(), b.clone()):
            assert same(nested(x), plainly(nested, x))
        assert (reuse.hits, reuse.misses) == (2, 2)


def test_a_tensor_that_is_filled_anew_is_another_input() -> None:
    """NumPy leaves no sign in the tensor that shares its memory."""
    nested = chain()
    memory = np.ones((3, 8), dtype=np.float32)
    x = torch.from_numpy(memory)
    with torch.no_grad(), nested.reusing() as reuse:
        for value in (1.0, 2.0, 1.0):
            memory[:] = value
            assert same(nested(x), plainly(nested, x))
        assert (reuse.hits, reuse.misses) == (1, 2)


def test_views_of_the_input_outlive_what_the_caller_writes() -> None:
    torch.manual_seed(0)
    x, mask = SUBJECTS["masked"].batch(3)
    nested = nestify.transform(Masked(), "fn3-neuron{where=all}", (x, mask)).eval()
    last = nested.space.units[-1].name
    with torch.no_grad(), nested.reusing() as reuse:
        again = x.clone(), mask.clone()
        nested(x, mask)
        mask.zero_()
        x.zero_()
        with nested.activate({last: 3}):
            assert same(nested(*again), plainly(nested, *again))
        assert reuse.hits == 1


def test_other_layouts_and_settings_are_other_inputs() -> None:
    nested, ((x,), *_) = nest("mobilenet")
    last = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), nested.reusing() as reuse:
        for y in (x, last, x[:3], x.double()[:2].float()):
            assert same(nested(y), plainly(nested, y))
        with torch.autocast("cpu", torch.bfloat16):
            assert same(nested(x), plainly(nested, x))
        with torch.inference_mode():
            found = nested(x)
            assert same(found, plainly(nested, x))
        assert reuse.hits == 0
        out = nested(x)
        assert reuse.hits == 1
        assert not out.is_inference()


def test_inputs_of_any_layout_are_kept() -> None:
    nested, base = chain(), torch.randn(9, 8)
    wide = torch.randn(3, 16)
    with torch.no_grad(), nested.reusing() as reuse:
        for x in (base[0].expand(3, 8), base.T[:, :8].T[1:4], wide[:, ::2], wide[:, 1:9]):
            assert same(nested(x), plainly(nested, x))
            assert same(nested(x), plainly(nested, x))
        assert (reuse.hits, reuse.misses) == (4, 4)


# --- outputs --------------------------------------------------------------------------------------


def test_the_caller_may_write_into_what_it_gets() -> None:
    nested, ((x,), *_) = nest("pyramid")
    last = nested.space.units[-1].name
    with torch.no_grad():
        expected = {name: y.clone() for name, y in nested(x.clone()).items()}
        with nested.reusing() as reuse:
            for _ in range(3):
                found = nested(x.clone())
                assert same(found, expected)
                for y in found.values():
                    y.zero_()
            with nested.activate({last: 3}):
                nested(x.clone())["map0"].zero_()
            assert same(nested(x), expected)
            assert reuse.hits == 4


# --- weights --------------------------------------------------------------------------------------


def test_gradients_and_modes_of_torch_see_every_call() -> None:
    nested, x = chain(), torch.randn(3, 8)
    with nested.reusing() as reuse:
        with torch.no_grad():
            nested(x)
        nested(x).sum().backward()
        assert all(p.grad is not None for p in nested.parameters())
        with torch.no_grad():
            counter = FlopCounterMode(display=False)
            with counter:
                nested(x)
            assert counter.get_total_flops() == 6 * 2 * 3 * 8 * 8
        assert reuse.hits == 0


def _scaled(weight: Tensor) -> None:
    with torch.no_grad():
        weight.mul_(1.5)


CHANGES: dict[str, Callable[[nestify.NestedModel], Any]] = {
    "in place": lambda net: _scaled(net.get_parameter("0.0.weight")),
    "through a view": lambda net: _scaled(net.get_parameter("0.0.weight")[2]),
    "data": lambda net: setattr(net.get_parameter("0.0.bias"), "data", torch.ones(8)),
    "other parameter": lambda net: setattr(
        net.get_submodule("0.0"), "weight", nn.Parameter(torch.ones(8, 8))
    ),
    "other module": lambda net: setattr(net.get_submodule("0"), "0", nn.Linear(8, 8)),
    "state dict": lambda net: net.load_state_dict(
        {name: 2 * tensor for name, tensor in net.state_dict().items()}
    ),
    "optimizer": lambda net: _step(net),
    "transposed": lambda net: setattr(
        net.get_parameter("0.0.weight"), "data", net.get_parameter("0.0.weight").data.t()
    ),
}


def _step(nested: nestify.NestedModel) -> None:
    with torch.enable_grad():
        nested(torch.ones(2, 8)).sum().backward()
    torch.optim.Adam(nested.parameters(), lr=0.1).step()


@pytest.mark.parametrize("change", CHANGES)
def test_weights_that_change_are_noticed(change: str) -> None:
    nested, x = chain(), torch.randn(3, 8)
    with torch.no_grad(), nested.reusing() as reuse:
        before = nested(x)
        CHANGES[change](nested)
        after = nested(x)
        assert not torch.equal(before, after)
        assert same(after, plainly(nested, x))
        assert reuse.hits == 0
        assert same(nested(x), after)
        assert reuse.hits == 1


def test_a_late_weight_leaves_early_states_alone() -> None:
    nested, x = chain(), torch.randn(3, 8)
    with torch.no_grad(), nested.reusing() as reuse:
        nested(x)
        _scaled(nested.get_parameter("3.0.weight"))
        assert same(nested(x), plainly(nested, x))
        assert (reuse.hits, reuse.steps_skipped) == (1, 6)


@pytest.mark.parametrize("name", WITH_NORMS)
def test_statistics_written_in_training_are_noticed(name: str) -> None:
    nested, ((x, *_), *_) = nest(name)
    with torch.no_grad(), nested.reusing() as reuse:
        before = nested(x)
        nested.train()(x)
        nested.eval()
        assert not torch.equal(nested(x), before)
        assert same(nested(x), plainly(nested, x))
        norm = next(m for m in nested.modules() if isinstance(m, nn.BatchNorm2d))
        hits = reuse.hits
        norm.train()  # one module in training: nothing is kept
        nested(x)
        norm.eval()
        assert same(nested(x), plainly(nested, x))
        assert reuse.hits == hits


def test_what_a_subnet_has_of_its_own_is_told_apart() -> None:
    nested, batches = nest("mobilenet")
    half, full = nested.space.at(0.5), nested.space.largest()
    (x,) = batches[0]
    with torch.no_grad(), nested.reusing() as reuse:
        norms = nested.switch_norms([0.5, 1.0])
        for parameter in norms.parameters():
            parameter.add_(torch.rand_like(parameter))
        for rule in ("none", "expected", "conditional"):
            nested.scaling = rule
            for subnet in (half, full, nested.space.at(0.7)):
                with nested.activate(subnet):
                    for _ in range(2):
                        assert same(nested(x), plainly(nested, x))
        assert reuse.hits >= 9


def test_copies_and_nested_blocks_keep_apart() -> None:
    nested, x = chain(), torch.randn(3, 8)
    with torch.no_grad(), nested.reusing() as outer:
        nested(x)
        twin = copy.deepcopy(nested)
        twin(x)
        with nested.reusing() as inner:
            nested(x)
            assert (inner.hits, inner.misses) == (0, 1)
        nested(x)
        assert (outer.hits, outer.misses) == (1, 1)
    with torch.no_grad():
        nested(x)
    assert (outer.hits, outer.misses, outer.bytes_held) == (1, 1, 0)
