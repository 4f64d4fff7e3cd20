"""The form table covers the rule table: a new rule is fuzzed, or says why it is not."""

from __future__ import annotations

import random

import pytest

from nestify.rules import OPS
from tests.fuzz.build import build
from tests.fuzz.choices import Choices
from tests.fuzz.forms import RejectedError, match, sizes
from tests.fuzz.grow import grow
from tests.fuzz.table import NOT_REACHED, derived, form_table, op_of

FORMS = form_table()
# Forms that are made of several ops, named for what they are.
COMPOSED = {
    *("normalize", "rms_by_hand", "multihead_attention", "transformer_layer", "conv"),
    *("weight_standardised", "squeeze_excite", "residual_block", "residual_mlp", "twice", "tied"),
    *("wrap", "scale", "rotary", "weight_norm"),
}


def test_every_rule_has_a_form() -> None:
    missing = set(OPS) - {op_of(name) for name in FORMS} - NOT_REACHED.keys()
    assert not missing, (
        f"no generated model can call {sorted(missing)}: add a form in tests/fuzz/*_forms.py, "
        "or the reason in NOT_REACHED of tests/fuzz/table.py"
    )


def test_forms_are_of_known_ops() -> None:
    assert {op_of(name) for name in FORMS} - set(OPS) == COMPOSED


def test_reasons_are_for_rules_without_a_form() -> None:
    assert set(NOT_REACHED) <= set(OPS)
    assert not set(NOT_REACHED) & {op_of(name) for name in FORMS}


def test_every_form_can_be_grown() -> None:
    """A form that no model can use would be a hole in the coverage that nobody sees."""
    never: list[str] = []
    for name in FORMS:
        if op_of(name) in ("wrap", "scale") or name.startswith("to:"):
            continue
        only = {n: form for n, form in FORMS.items() if op_of(n) != op_of(name) or n == name}
        grown = (grow(0, i, only, size=3, focus={op_of(name)}) for i in range(12))
        if not any(name in set(g.spec.forms()) for g in grown):
            never.append(name)
    assert never == []


def test_pointwise_ops_and_lines_need_no_form() -> None:
    assert derived("tanh") is not None
    assert derived("hypot") is not None
    conv = derived("conv2d")
    assert conv is not None
    assert conv.text == "aten.conv2d(input={x_}, weight={y_}, bias={z_}, groups={g})"
    assert derived("view") is None


@pytest.mark.parametrize(
    "op", ["conv1d", "conv2d", "conv_transpose2d", "linear", "channel_shuffle"]
)
def test_derived_forms_give_valid_calls(op: str) -> None:
    form = derived(op)
    assert form is not None
    forms = {name: f for name, f in FORMS.items() if op_of(name) != op} | {op: form}
    grown = [grow(0, i, forms, size=3, focus={op}) for i in range(12)]
    assert any(op in set(g.spec.forms()) for g in grown)


def test_patterns() -> None:
    assert match("n c *s", (2, 8), {}) == {"n": 2, "c": 8, "s": ()}
    assert match("*b c c", (2, 8, 8), {}) == {"b": (2,), "c": 8}
    assert match("*b c c", (2, 8, 4), {}) is None
    assert match("g*o", (6,), {"g": 2, "o": 3}) is not None
    assert match("g*o", (6,), {"g": 2}) is None
    assert match("*b q e", (2, 3, 4), {"b": (5,)}) is None
    assert sizes("g*o 3", {"g": 2, "o": 2}, Choices(None)) == (4, 3)
    with pytest.raises(RejectedError):
        sizes("a b", {"a": 100, "b": 100}, Choices(None))


def test_choices_replay() -> None:
    first = Choices(random.Random(3))
    drawn = [first.pick(range(10)) for _ in range(5)]
    again = Choices(None, first.taken)
    assert [again.pick(range(10)) for _ in range(5)] == drawn
    assert Choices(None, [7]).pick("abc") == "b"


def test_models_depend_on_seed_and_index_alone() -> None:
    first = [grow(5, i, FORMS).spec for i in range(8)]
    assert [grow(5, i, FORMS).spec for i in reversed(range(8))] == first[::-1]
    assert first != [grow(6, i, FORMS).spec for i in range(8)]
    for spec in first:
        codes = {build(spec, FORMS).source_code(spec.outputs) for _ in range(2)}
        assert len(codes) == 1
