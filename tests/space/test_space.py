"""Units, subnets, the space: exact counts, round trips, and errors that name unit and range."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nestify import ArtifactError, SearchSpace, Subnet, Unit, UsageError

NAMES = st.text(min_size=1, max_size=8)


@st.composite
def units(draw: st.DrawFn) -> Unit:
    size = draw(st.integers(1, 40))
    minimum = draw(st.integers(1, size))
    return Unit(draw(NAMES), "channel", size, minimum, draw(st.integers(1, 12)))


SPACES = st.lists(units(), max_size=6, unique_by=lambda unit: unit.name).map(
    lambda found: SearchSpace(tuple(found))
)


@given(st.dictionaries(NAMES, st.integers(1, 10**6)))
def test_subnets_survive_json_and_hash_alike(sizes: dict[str, int]) -> None:
    subnet = Subnet(sizes)
    again = Subnet.from_json(subnet.to_json())
    assert again == subnet
    assert hash(again) == hash(subnet)
    assert dict(again) == sizes


@given(units())
def test_choices_are_legal_ascending_and_end_at_both_ends(unit: Unit) -> None:
    choices = unit.choices
    assert list(choices) == sorted(set(choices))
    assert choices[0] == unit.minimum
    assert choices[-1] == unit.size
    assert all(c % unit.step == 0 for c in choices[1:-1])
    between = range(unit.minimum, unit.size + 1)
    ends = {unit.minimum, unit.size}
    assert list(choices) == [c for c in between if c in ends or c % unit.step == 0]
    assert [c for c in range(-1, unit.size + 3) if c in choices] == list(choices)


@given(units(), st.floats(-2.0, 70.0))
def test_the_nearest_choice_and_the_one_below(unit: Unit, size: float) -> None:
    choices = list(unit.choices)
    assert unit.nearest(size) == max(choices, key=lambda c: (-abs(c - size), c))
    assert unit.choices.at_most(size) == max([c for c in choices if c <= size] or choices[:1])


@given(SPACES, st.floats(0.01, 1.0), st.integers(0, 1000))
def test_every_subnet_of_a_space_is_valid(space: SearchSpace, size: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for subnet in (space.largest(), space.smallest(), space.at(size), space.sample(generator)):
        space.validate(subnet)
        assert space.complete(subnet) == subnet
    assert space.num_subnets == math.prod(len(unit.choices) for unit in space.units)


def test_draws_are_uniform_over_the_choices() -> None:
    space = SearchSpace((Unit("a", "channel", 4),))
    generator = torch.Generator().manual_seed(0)
    drawn = [space.sample(generator)["a"] for _ in range(4000)]
    keep = [sum(c >= m for c in drawn) / len(drawn) for m in (1, 2, 3, 4)]
    assert keep == pytest.approx([1.0, 0.75, 0.5, 0.25], abs=0.03)  # (M + 1 - m) / M


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"conv": 0}, ["size 0", "'conv'", "2..8"]),
        ({"conv": 9}, ["size 9", "2..8"]),
        ({"conv": 3}, ["step 2", "nearest legal size is 4"]),
        ({"cvon": 4}, ["no unit 'cvon'", "conv"]),
        ({"conv": "4"}, ["size of unit 'conv' must be an int, not '4'"]),
        ({"conv": [0, 1]}, ["size of unit 'conv' must be an int, not [0, 1]"]),
        (0.5, ["subnet of the space must be sizes by unit", "space.at(share)", "got 0.5"]),
        ([4], ["subnet of the space must be sizes by unit", "got [4]"]),
    ],
)
def test_what_is_out_of_range_is_named(sizes: Any, words: list[str]) -> None:
    space = SearchSpace((Unit("conv", "channel", 8, 2, 2),))
    with pytest.raises(UsageError) as error:
        space.validate(sizes)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize("size", [0, -0.5, 1.5])
def test_a_share_is_above_0_and_at_most_1(size: float) -> None:
    with pytest.raises(UsageError, match="0 < size <= 1"):
        SearchSpace(()).at(size)


@pytest.mark.parametrize("text", ["", "[1]", '{"a": 1.5}', '{"a": true}', "3"])
def test_texts_that_are_no_subnet_are_refused(text: str) -> None:
    with pytest.raises((ArtifactError, UsageError)):
        Subnet.from_json(text)
