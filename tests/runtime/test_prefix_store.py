"""What is kept when not all can be."""

from __future__ import annotations

import pytest
import torch

from nestify.runtime.prefix_store import Inputs, State, States, storages_of
from nestify.runtime.tensor_identity import look_at

SIZE = 1024


def state(key: str, inputs: Inputs | None = None) -> State:
    """A state of one tensor of 1 KiB, with no inputs to speak of."""
    value = torch.zeros(SIZE, dtype=torch.uint8)
    inputs = inputs or Inputs(key, [])
    return State(key, 0, inputs, {0: value}, (), storages_of(value))


def offer(states: States, key: str) -> bool:
    """Look a state up, as a pass does, and keep a new one where there is none; whether it hit."""
    if states.get(key) is not None:
        return True
    if states.wants(key):
        states.add(state(key))
    return False


def test_passes_over_more_than_there_is_room_for_hit() -> None:
    """To drop the one that was used longest ago would be to drop the one that comes next."""
    states = States(8 * SIZE)
    for _ in range(4):
        for i in range(12):
            offer(states, f"{i}")
    hits = sum(offer(states, f"{i}") for _ in range(20) for i in range(12))
    assert hits > 0.35 * 20 * 12
    assert states.bytes_held == 8 * SIZE


def test_what_one_candidate_wants_drives_nothing_out() -> None:
    """A scan of states that never come again leaves those that do where they are."""
    states = States(8 * SIZE)
    for i in range(9):
        offer(states, f"shared {i % 6}")
    for i in range(3):
        offer(states, f"first {i}")  # no room any more
    for i in range(200):
        offer(states, f"once {i}")
    assert sum(offer(states, f"shared {i}") for i in range(6)) >= 4


def test_bytes_are_counted_once() -> None:
    """States of one pass share tensors and inputs; what is shared goes with the last of them."""
    look = look_at([torch.ones(SIZE, dtype=torch.uint8)])
    assert look is not None
    inputs = Inputs.copy(look)
    copied = sum(storages_of(inputs.tensors).values())
    states, value = States(1 << 20), torch.zeros(SIZE, dtype=torch.uint8)
    both = [
        State(key, place, inputs, {place: value}, (), storages_of([value, inputs.tensors]))
        for place, key in enumerate("ab")
    ]
    assert states.inputs(look) is None
    for one in both:
        states.add(one)
        states.add(one)  # it is there already
        assert states.bytes_held == SIZE + copied
        assert states.inputs(look) is inputs
    states.drop(both[0])
    assert (states.bytes_held, states.inputs(look)) == (SIZE + copied, inputs)
    states.drop_where(lambda one: one.place == 1)
    assert (states.bytes_held, states.inputs(look), len(states)) == (0, None, 0)


def test_what_is_larger_than_the_limit_is_not_kept() -> None:
    states = States(SIZE - 1)
    states.add(state("large"))
    assert (len(states), states.bytes_held) == (0, 0)


@pytest.mark.parametrize(
    "other",
    [
        torch.zeros(4, 6).int(),
        torch.zeros(6, 4),
        torch.zeros(6, 4).t(),
        torch.zeros(25)[1:].view(4, 6),
        torch.zeros(4, 6).double()[:, :3],
    ],
)
def test_layouts_tell_inputs_apart(other: torch.Tensor) -> None:
    """All bits are zero, and yet these are other inputs: kernels may round otherwise."""
    one, same, two = look_at([torch.zeros(4, 6)]), look_at([torch.zeros(4, 6)]), look_at([other])
    assert one is not None
    assert same is not None
    assert two is not None
    assert one.key == same.key != two.key


@pytest.mark.parametrize(
    "value", [torch.zeros(2, device="meta"), torch.eye(2).to_sparse(), object(), [torch.ones(2)]]
)
def test_what_cannot_be_kept_is_not_looked_at(value: object) -> None:
    assert look_at([torch.ones(2), value]) is None


def test_numbers_beside_tensors_count() -> None:
    looks = [look_at([torch.ones(2), value]) for value in (1, 1.0, True, "1", None, 1)]
    keys = [look.key for look in looks if look is not None]
    assert len(keys) == 6
    assert len(set(keys)) == 5
