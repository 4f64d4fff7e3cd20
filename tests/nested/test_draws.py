"""Draws: their laws, and that seed and step decide what comes next."""

from __future__ import annotations

import copy
import io
import random
from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import nestify
from nestify import Unit
from nestify.nested.draw_stream import Draws
from nestify.space.draw_laws import DRAWS, draw_subnet

N = 20_000


def make(recipe: str = "fn3-neuron") -> nestify.NestedModel:
    net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))
    return nestify.transform(net, recipe, (torch.randn(2, 6),)).train()


def drawn(nested: nestify.NestedModel, count: int = 5) -> list[nestify.Subnet]:
    subnets = []
    for _ in range(count):
        nested(torch.randn(2, 6, generator=torch.Generator().manual_seed(0)))
        subnets.append(nested.drawn)
    return subnets


def sizes(draw: str, *units: Unit) -> list[nestify.Subnet]:
    numbers = random.Random(0)
    chosen = [Unit(u.name, u.kind, u.size, u.minimum, u.step, draw) for u in units]
    return [draw_subnet(chosen, numbers) for _ in range(N)]


# --- laws -----------------------------------------------------------------------------------------


def test_uniform_draws_keep_block_m_as_often_as_the_paper_says() -> None:
    M = 8
    counts = [s["a"] for s in sizes("uniform", Unit("a", "channel", M))]
    for m in range(1, M + 1):
        kept = sum(c >= m for c in counts) / N
        beta = (M + 1 - m) / M
        assert abs(kept - beta) <= 4 * (beta * (1 - beta) / N) ** 0.5, m


def test_with_a_core_half_of_the_rest_is_active_on_average() -> None:
    unit = Unit("a", "neuron", 64, minimum=8)
    mean = sum(s["a"] for s in sizes("uniform", unit)) / N
    assert abs(mean - (64 + 8) / 2) < 4 * (57**2 / 12 / N) ** 0.5


def test_expected_information_weighs_each_block_by_its_keep_probability() -> None:
    """E[I_c] = I_1 + sum over c >= 2 of beta_c (I_c - I_(c-1)); the printed (M - c)/M is wrong."""
    M, draw = 12, random.Random(3)
    info = [draw.random() for _ in range(M)]
    expected = sum(info) / M
    steps = [info[c] - info[c - 1] for c in range(1, M)]
    right = info[0] + sum((M + 1 - (c + 1)) / M * steps[c - 1] for c in range(1, M))
    printed = info[0] + sum((M - (c + 1)) / M * steps[c - 1] for c in range(1, M))
    assert right == pytest.approx(expected)
    assert printed != pytest.approx(expected)


def test_log_uniform_draws_every_doubling_as_often() -> None:
    octaves = Counter(s["a"].bit_length() for s in sizes("log-uniform", Unit("a", "channel", 255)))
    assert set(octaves) == set(range(1, 9))
    assert all(abs(count / N - 1 / 8) < 0.015 for count in octaves.values())


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize(
    "unit",
    [
        Unit("a", "channel", 20, 8, 8),
        Unit("a", "layer", 4, 0),
        Unit("a", "head", 1),
        Unit("a", "channel", 13, 3),
    ],
    ids=str,
)
def test_draws_are_legal_and_reach_every_choice(draw: str, unit: Unit) -> None:
    assert {s["a"] for s in sizes(draw, unit)} == set(unit.choices)


def test_shared_draws_move_all_units_together() -> None:
    units = Unit("a", "channel", 16), Unit("b", "channel", 16)
    assert all(s["a"] == s["b"] for s in sizes("shared-uniform", *units))
    assert all(s["a"] == s["b"] for s in sizes("shared-log-uniform", *units))
    mixed = sizes("mixture", *units)
    together = sum(s["a"] == s["b"] for s in mixed) / N
    assert 1 / 8 + 1 / 2 < together < 1 / 8 + 1 / 2 + 3 / 8 / 3
    within = sum(1 / 4 <= s["a"] / s["b"] <= 4 for s in mixed) / N  # an octave up, one down
    assert within > 1 - 1 / 32
    assert sum(s["a"] == s["b"] for s in sizes("uniform", *units)) / N < 0.1


def test_a_recipe_names_the_draw_of_each_pass() -> None:
    assert [u.draw for u in make("fn3-neuron{draw=shared-uniform}").space.units] == [
        "shared-uniform"
    ] * 2
    with pytest.raises(nestify.UsageError, match=r"uniform, log-uniform.*'normal'"):
        make("fn3-neuron{draw=normal}")


# --- the stream -----------------------------------------------------------------------------------


def test_manual_seed_decides_the_sequence() -> None:
    nested = make()
    sequences = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        sequences.append(drawn(nested))
    assert sequences[0] == sequences[1] != sequences[2]
    assert len(set(sequences[0])) > 1
    torch.manual_seed(1)
    assert drawn(make_untouched(1)) == sequences[0]


def make_untouched(seed: int) -> nestify.NestedModel:
    nested = make()
    torch.manual_seed(seed)
    return nested


def test_a_draw_takes_nothing_from_torch_but_once_after_seeding() -> None:
    nested = make()
    torch.manual_seed(0)
    nested(torch.zeros(2, 6))
    before = torch.get_rng_state()
    drawn(nested)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("way", ["state_dict", "copied", "saved", "by hand"])
def test_a_resumed_run_draws_the_same_sequence(way: str) -> None:
    torch.manual_seed(3)
    nested = make()
    drawn(nested, 7)
    state = nested.state_dict()
    if way == "copied":
        state = copy.deepcopy(state)
    if way == "saved":
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        state = torch.load(file, weights_only=True)
    by_hand = nested.draws.state_dict()
    expected = drawn(nested)
    torch.manual_seed(4)
    resumed = make()
    if way == "by hand":
        resumed.draws.load_state_dict(by_hand)
    else:
        resumed.load_state_dict(state)
    torch.manual_seed(5)
    assert drawn(resumed) == expected


def test_the_state_adds_no_key() -> None:
    nested = make()
    model = nested.graph.capture.model
    assert nested.state_dict().keys() == model.state_dict().keys()
    model.load_state_dict(nested.state_dict())
    before = nested.draws.state_dict()
    nested.load_state_dict(model.state_dict())
    assert nested.draws.state_dict() == before


def test_a_copy_goes_on_alone() -> None:
    nested = make()
    drawn(nested)
    twin = copy.deepcopy(nested)
    assert drawn(twin) == drawn(nested)


def test_looking_ahead_takes_no_draw() -> None:
    """Subnets are bound some steps ahead: what is drawn, and from where, stays the same."""
    nested, twin = make(), make()
    units = nested.space.units
    for seed in (5, 6):
        for net in (nested, twin):
            net.draws.restart(seed)
        ahead = nested.draws.upcoming(units, 9)
        assert nested.draws.state_dict() == twin.draws.state_dict()
        assert ahead == nested.draws.upcoming(units, 9)
        assert [twin.draws.next(units) for _ in range(9)] == ahead
        assert [nested.draw() for _ in range(9)] == ahead
    assert nested.draws.upcoming(units[:1], 1)[0].keys() == {units[0].name}


class Views(nn.Module):
    """Names the size of its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).view(x.shape[0], -1))


@pytest.mark.parametrize("spelled", [False, True])
def test_steps_of_one_batch_size_are_bound_ahead(
    spelled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    nested = nestify.transform(Views(), "fn3-neuron", (torch.ones(2, 6),)) if spelled else make()
    nested.train()
    nested.draws.restart(1)
    bound: list[nestify.Subnet] = []
    bind = nested.keep
    monkeypatch.setattr(nested, "keep", lambda subnet: bound.append(subnet) or bind(subnet))
    drawn(nested, 1)
    assert len(bound) == 1
    expected = nested.draws.upcoming(nested.space.units, 17)
    drawn(nested, 17)
    assert set(bound[1:]) == set(expected) - set(bound[:1])
    assert len(bound) == len(set(bound))  # none twice
    before = len(bound)
    nested(torch.zeros(3, 6))
    new = bound[before:]
    assert new[0] == nested.drawn
    assert len(new) == 1 if spelled else len(new) > 1  # a new size of the batch: that subnet only


def test_wrong_states_are_refused() -> None:
    for seed, step in ((-1, 0), (0, -1), (True, 0), (0, 1.5)):
        with pytest.raises(nestify.UsageError, match="must be an int"):
            Draws().restart(seed, step)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_recomputes_the_same_subnet(reentrant: bool) -> None:
    nested = make()
    x = torch.randn(4, 6, requires_grad=True)
    for seed in range(5):
        grads = []
        for wrapped in (False, True):
            torch.manual_seed(seed)
            nested.zero_grad()
            out = checkpoint(nested, x, use_reentrant=reentrant) if wrapped else nested(x)
            out.square().sum().backward()
            grads.append([p.grad.clone() for p in nested.parameters()])
        assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_recomputes_the_subnet_that_was_active(reentrant: bool) -> None:
    nested = make()
    x = torch.randn(4, 6, requires_grad=True)
    grads = []
    for wrapped in (False, True):
        nested.zero_grad()
        with nested.activate(nested.space.at(0.3)):
            out = checkpoint(nested, x, use_reentrant=reentrant) if wrapped else nested(x)
        out.square().sum().backward()
        grads.append([p.grad.clone() for p in nested.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_around_the_model_needs_a_subnet(reentrant: bool) -> None:
    nested, stem = make(), torch.nn.Linear(6, 6)
    x = torch.randn(4, 6, requires_grad=True)

    def around(x: torch.Tensor) -> torch.Tensor:
        return nested(stem(x))

    out = checkpoint(around, x, use_reentrant=reentrant)
    taken = [torch.empty(4, 6) for _ in range(64)]  # so that the inputs come to lie elsewhere
    with pytest.raises(nestify.UsageError, match="checkpoint the nested model itself"):
        out.square().sum().backward()
    del taken
    subnet = nested.draw()

    def fixed(x: torch.Tensor) -> torch.Tensor:
        with nested.activate(subnet):
            return nested(stem(x))

    grads = []
    for way in (fixed, lambda x: checkpoint(fixed, x, use_reentrant=reentrant)):
        nested.zero_grad()
        way(x).square().sum().backward()
        grads.append([p.grad.clone() for p in nested.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_checkpoints_of_two_subnets_on_one_input_are_told_apart_or_refused() -> None:
    nested = make()
    x = torch.randn(4, 6)
    subnets = [nested.space.at(0.3), nested.space.largest()]

    def loss(*inputs: torch.Tensor, wrapped: bool) -> torch.Tensor:
        total = torch.zeros(())
        for subnet, given in zip(subnets, inputs, strict=True):
            with nested.activate(subnet):
                out = checkpoint(nested, given, use_reentrant=False) if wrapped else nested(given)
            total = total + out.square().sum()
        return total

    loss(x, x.clone(), wrapped=False).backward()
    expected = [p.grad.clone() for p in nested.parameters()]
    nested.zero_grad()
    loss(x, x.clone(), wrapped=True).backward()
    assert all(torch.equal(p.grad, e) for p, e in zip(nested.parameters(), expected, strict=True))
    with pytest.raises(nestify.UsageError, match=r"each in a checkpoint.*x\.clone\(\)"):
        loss(x, x, wrapped=True).backward()


def test_a_teacher_in_a_checkpoint_waits_for_nothing() -> None:
    nested = make()
    twin, x = copy.deepcopy(nested), torch.randn(4, 6)
    for net, wrapped in ((nested, False), (twin, True)):
        with torch.no_grad(), net.activate(net.space.largest()):
            teacher = checkpoint(net, x, use_reentrant=False) if wrapped else net(x)
        with net.activate(net.space.at(0.5)):
            out = checkpoint(net, x, use_reentrant=False) if wrapped else net(x)
        (out - teacher).square().sum().backward()
    for a, b in zip(nested.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


# --- among ranks ----------------------------------------------------------------------------------


def test_a_rank_takes_the_state_that_ddp_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = make(), make()
    first.draws.restart(11, 4)
    second.draws.restart(12, 0)
    drawn(first, 1)  # writes its buffer
    second.get_buffer("_draws").copy_(first.get_buffer("_draws"))
    monkeypatch.setattr("nestify.nested.draw_stream._several_ranks", lambda: True)
    torch.manual_seed(99)  # seeds of ranks differ: no draw may follow them
    assert drawn(second) == drawn(first)


@pytest.mark.parametrize("way", ["state_dict", "by hand"])
def test_a_resumed_run_goes_on_among_ranks(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks resume before they are wrapped: what DDP hands around must not be older."""
    nested = make()
    drawn(nested, 7)
    resumed = make()
    if way == "state_dict":
        resumed.load_state_dict(nested.state_dict())
    else:
        resumed.draws.load_state_dict(nested.draws.state_dict())
    other = make()  # a rank that reads no checkpoint
    other.get_buffer("_draws").copy_(resumed.get_buffer("_draws"))
    expected = drawn(nested)
    monkeypatch.setattr("nestify.nested.draw_stream._several_ranks", lambda: True)
    assert drawn(resumed) == expected
    assert drawn(other) == expected


def test_memory_that_nobody_wrote_is_no_state(monkeypatch: pytest.MonkeyPatch) -> None:
    nested = make()
    nested.draws.restart(11, 4)
    expected = drawn(copy.deepcopy(nested))
    nested.get_buffer("_draws").copy_(torch.tensor([1, 2, 3]))
    monkeypatch.setattr("nestify.nested.draw_stream._several_ranks", lambda: True)
    assert drawn(nested) == expected
