"""What is left out: all that comes before the first change, but no noise and no write."""

from __future__ import annotations

import pytest
import torch

from tests.runtime.prefix.evaluations import chain, evaluate, nest


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


@pytest.mark.parametrize("name", ["mobilenet", "resnext", "residual", "vit"])
def test_the_work_before_a_unit_is_what_a_change_of_it_alone_leaves_out(name: str) -> None:
    nested, batches = nest(name)
    full, before = nested.space.largest(), nested.cuts.before
    skipped: dict[str, int] = {}
    for unit in nested.space.units:
        with torch.no_grad(), nested.reusing() as reuse:
            evaluate(nested, batches[:1])
            with nested.activate(dict(full) | {unit.name: unit.choices[0]}):
                evaluate(nested, batches[:1])
            skipped[unit.name] = reuse.steps_skipped
    assert before.keys() == skipped.keys()
    assert all((skipped[u] > 0) == (share > 0) for u, share in before.items())
    in_order = sorted(before, key=before.__getitem__)
    assert [skipped[u] for u in in_order] == sorted(skipped.values())
    assert max(before.values()) > 0.3


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
