"""The laws of the op table: every rule is proved by running its op, whole and sliced."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nestify.dims import dims_of
from nestify.dims.selection import Keep
from nestify.rules import OPS
from tests.laws.harness import (
    Analysis,
    Sample,
    analyse_sample,
    draw_keeps,
    macs,
    pairs,
    run_call,
)
from tests.laws.samples import SAMPLES

# Capture spells these in the terms of other ops; their samples prove that.
REWRITTEN = set("chunk split tensor_split hsplit vsplit dsplit unsafe_chunk unsafe_split".split())
# Capture drops these: they compute nothing.
DROPPED = {"_assert_tensor_metadata"}


pytestmark = pytest.mark.usefixtures("double_precision")


def op_of(name: str) -> str:
    return name if "::" in name else name.partition(":")[0]


def test_every_rule_has_a_sample() -> None:
    assert set(OPS) - {op_of(name) for name in SAMPLES} == set()


def test_samples_are_of_known_ops() -> None:
    assert {op_of(name) for name in SAMPLES} - set(OPS) == REWRITTEN


def test_the_vocabulary_of_public_models_is_covered() -> None:
    names = Path(__file__).with_name("vocabulary.txt").read_text().split()
    assert len(names) > 100
    assert set(names) - set(OPS) - REWRITTEN - DROPPED == set()


@pytest.mark.parametrize("name", SAMPLES)
def test_law(name: str) -> None:
    sample = SAMPLES[name]
    analysis = analyse_sample(sample)
    ops = {call.op for call in analysis.calls.values()}
    assert (op_of(name) in ops) != (op_of(name) in REWRITTEN)
    assert elasticity(sample, analysis) == sample.operands
    check_sizes(analysis)
    check_macs(sample, analysis)
    for keep in draw_keeps(analysis, 3):
        check_slices(sample, analysis, keep)


def elasticity(sample: Sample, analysis: Analysis) -> str:
    """The sample's operands as written, with stars on the dims that are elastic now."""
    sources = iter(analysis.operands(len(sample.operands.split(","))))
    return ",".join(_starred(text, next(sources)) for text in sample.operands.split(","))


def _starred(text: str, dims: object) -> str:
    if dims is None:  # the op does not read this operand
        return text
    kind, colon, sizes = text.rpartition(":")
    lead = sizes[: len(sizes) - len(sizes.lstrip())]
    words = [
        word.rstrip("*") + "*" * (any(not d.batch for d in dims_of(expr)))
        for word, expr in zip(sizes.split(), dims, strict=True)
    ]
    batch = [any(d.batch for d in dims_of(expr)) for expr in dims]
    assert batch == [word == "B" for word in words], "the batch dim must stay free, and alone so"
    return kind + colon + lead + " ".join(words)


def check_sizes(analysis: Analysis) -> None:
    for node, value in analysis.run(None).items():
        for tensor, dims in pairs(value, analysis.dims[node]):
            assert tuple(tensor.shape) == tuple(e.size for e in dims), node.format_node()


def check_slices(sample: Sample, analysis: Analysis, keep: Keep) -> None:
    """The op on slices gives the slice of the op's output, with what it sums over zeroed."""
    full = analysis.run(None, silence=keep)
    for node, value in analysis.run(keep).items():
        whole = dict(enumerate(tensor for tensor, _ in pairs(full[node], analysis.dims[node])))
        for i, (part, dims) in enumerate(pairs(value, analysis.dims[node])):
            assert tuple(part.shape) == tuple(keep.size(e) for e in dims), node.format_node()
            expected = whole[i]
            for d, expr in enumerate(dims):
                expected = expected.index_select(d, keep.indices(expr))
            if sample.values:
                torch.testing.assert_close(part, expected, rtol=1e-10, atol=1e-10, equal_nan=True)


def check_macs(sample: Sample, analysis: Analysis) -> None:
    """Declared counts equal torch's own, whole and sliced; where it has none, the sample's."""
    priced = {node: call for node, call in analysis.calls.items() if call.macs}
    if sample.macs is not None:
        assert sum(macs(call, Keep({})) for call in priced.values()) == sample.macs
        return
    for keep in (Keep({}), *draw_keeps(analysis, 1)):
        env = analysis.run(keep) if priced else {}
        for node, call in priced.items():
            with FlopCounterMode(display=False) as counter:
                run_call(node, env, call, keep)
            assert counter.get_total_flops() == 2 * macs(call, keep), node.format_node()


REFUSED = {
    "trace of what is not square": Sample(torch.trace, "2 3"),
    "a product of three matrices": Sample(lambda *m: torch.linalg.multi_dot(m), "2 3, 3 4, 4 5"),
    "diag_embed off the diagonal": Sample(lambda x: x.diag_embed(1), "2 3"),
    "diag of what is not square": Sample(torch.diag, "2 3"),
    "fill_diagonal of a long matrix": Sample(lambda x: x.clone().fill_diagonal_(0.0), "2 3"),
    "diagonal_scatter off it": Sample(lambda x, s: x.diagonal_scatter(s, 1), "3 3, 2"),
    "block_diag of a vector": Sample(torch.block_diag, "3, 2 2"),
    "searchsorted with a sorter": Sample(
        lambda x, s, i: torch.searchsorted(s, x, sorter=i + torch.arange(4)), "3, 4, i1: 4"
    ),
    "solve for a vector": Sample(lambda x, y: torch.linalg.solve(x @ x.mT, y), "2 3 3, 2 3"),
    "repeat_interleave of a flat tensor": Sample(lambda x: x.repeat_interleave(2), "2 3"),
    "tile of fewer dims": Sample(lambda x: x.tile(2), "2 3"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_modes_that_are_not_understood_are_refused(name: str) -> None:
    """An analysis of a whole model turns the error into fixed dims with this reason."""
    with pytest.raises(ValueError, match=r"understood|does not fit"):
        analyse_sample(REFUSED[name])
