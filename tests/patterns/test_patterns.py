"""Every pattern, one test a law: what is found, that it is exact in both modes, that it ships."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import nestify
from nestify.errors import NestifyWarning
from nestify.graph.graph import Graph
from nestify.nested.model import NestedModel
from nestify.support.closeness import relative_error
from tests.fuzz.training_step import apart, trained
from tests.laws.equalities import EVERYTHING, check_laws
from tests.patterns.limits import LIMITS
from tests.patterns.maps import MAPS
from tests.patterns.modules import MODULES
from tests.patterns.norms import NORMS
from tests.patterns.pattern import Pattern
from tests.patterns.recurrent import RECURRENT
from tests.patterns.shapes import SHAPES
from tests.patterns.tokens import TOKENS

PATTERNS = {**MAPS, **NORMS, **TOKENS, **RECURRENT, **SHAPES, **MODULES, **LIMITS}
TOLERANCE = {torch.float64: 1e-10, torch.float16: 2e-3, torch.bfloat16: 2e-2}
EVERY_NTH_SHIPS = 4

_OUTSIDE = ("is a dim of the model's input", "is a dim of the model's output")
_every_pattern = pytest.mark.parametrize("name", PATTERNS)


def lines(rows: Iterable[Iterable[Any]]) -> str:
    return "\n".join(" ".join(map(str, row)) for row in rows)


def groups_of(graph: Graph) -> str:
    """The groups of a graph as the tables write them."""
    return lines(
        (g.name, g.size, g.kind, *(f"{s.tensor}:{s.dim}" for s in g.sites)) for g in graph.groups
    )


def fixed_of(graph: Graph) -> str:
    """What an op of the graph fixed, as the tables write it."""
    return lines(
        (dim.size, dim.op, *(f"{s.tensor}:{s.dim}" for s in dim.sites))
        for dim in graph.fixed
        if dim.reason not in _OUTSIDE
    )


def written(text: str) -> list[list[str]]:
    """A table's entries in order, the sites of each in any; an indented line continues one."""
    entries: list[list[str]] = []
    for line in textwrap.dedent(text).strip().splitlines():
        if not line.startswith(" "):
            entries.append([])
        entries[-1].extend(line.split())
    facts = 2 if entries and entries[0][0].isdigit() else 3
    return [[*entry[:facts], *sorted(entry[facts:])] for entry in entries]


def noted(pattern: Pattern) -> AbstractContextManager[Any]:
    """Whether the pattern's note is given; a warning that no pattern expects is an error."""
    return pytest.warns(NestifyWarning, match=pattern.note) if pattern.note else nullcontext()


def nested_of(pattern: Pattern, dtype: torch.dtype | None = None) -> NestedModel:
    with noted(pattern):
        return nestify.transform(pattern.build(dtype), EVERYTHING, pattern.example(2, dtype))


@_every_pattern
def test_groups_are_exactly_these(name: str) -> None:
    pattern = PATTERNS[name]
    with noted(pattern):
        graph = nestify.trace(pattern.build(), pattern.example(2))
    assert written(groups_of(graph)) == written(pattern.groups)
    assert written(fixed_of(graph)) == written(pattern.fixed)
    assert pattern.why in " ".join(dim.reason for dim in graph.fixed)
    assert graph.batch is not None, "the batch is free"
    assert not graph.unknown_ops


@_every_pattern
def test_sliced_equals_nested_equals_silenced(name: str) -> None:
    pattern = PATTERNS[name]
    with noted(pattern):
        found = check_laws(
            pattern.build(torch.float64),
            pattern.example(2, torch.float64),
            subnets=4,
            other=pattern.example(3, torch.float64),
        )
    assert found == len(written(pattern.groups))


@pytest.mark.parametrize("name", [name for name, p in PATTERNS.items() if not p.note])
def test_training_steps_are_those_of_the_extracted_model(name: str) -> None:
    """Outputs, gradients and running statistics; the largest subnet trains as the original."""
    pattern = PATTERNS[name]
    nested = nested_of(pattern, torch.float64).train()
    inputs = pattern.example(3, torch.float64)
    for subnet in (nested.space.largest(), nested.space.sample(torch.Generator().manual_seed(0))):
        slim = nested.extract(subnet).train()
        with nested.activate(subnet):
            mine, theirs = step(nested, inputs), step(slim, inputs)
        assert relative_error(mine, theirs) <= 1e-10
        keep, dims = nested.keep(subnet), nested.graph.tensor_dims
        full = dict(nested.named_parameters())
        grads = {path: param.grad for path, param in slim.named_parameters()}
        assert not [path for path, grad in grads.items() if grad is None]
        rounding = 1e-10 * max(float(grad.abs().max()) for grad in grads.values())
        for path, grad in grads.items():  # a bias before a norm has gradients of rounding alone
            whole = full[path].grad
            assert (keep.slice(whole, dims[path]) - grad).abs().max() <= rounding, path
            assert abs(whole.norm() - grad.norm()) <= rounding, f"{path}: gradients off the slice"
        nested.zero_grad()


@_every_pattern
def test_a_training_step_is_the_original_s(name: str) -> None:
    """Outputs, gradients and buffers of the largest subnet, where no warning names what differs."""
    pattern = PATTERNS[name]
    model = pattern.build(torch.float64)
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        nested = nestify.transform(model, EVERYTHING, pattern.example(2, torch.float64))
    assert bool(notes) is bool(pattern.note)
    if notes:
        return
    inputs = pattern.example(3, torch.float64)
    nested.activate(nested.space.largest())
    where, error = apart(trained(model, inputs, {}), trained(nested, inputs, {}))
    assert error <= 1e-10, where


def step(net: nn.Module, inputs: Any) -> list[torch.Tensor]:
    torch.manual_seed(7)
    out = [leaf for leaf in pytree.tree_leaves(net(*inputs)) if leaf.is_floating_point()]
    sum((leaf * leaf.detach().cos()).sum() for leaf in out).backward()
    return out


@pytest.mark.parametrize("name", [n for n, p in PATTERNS.items() if p.dtype != torch.float64])
def test_low_precision_is_kept(name: str) -> None:
    pattern = PATTERNS[name]
    nested, inputs = nested_of(pattern), pattern.example(3)
    subnet = nested.space.sample(torch.Generator().manual_seed(0))
    slim = nested.extract(subnet)
    assert {p.dtype for p in slim.parameters()} == {pattern.dtype}
    with nested.activate(subnet), torch.no_grad():
        mine, theirs = nested(*inputs), slim(*inputs)
    assert theirs.dtype == pattern.dtype
    assert relative_error([mine], [theirs]) <= TOLERANCE[pattern.dtype]


def ship(name: str, folder: Path) -> None:
    """One random subnet, in float32, through onnxruntime; export compares the outputs."""
    pattern = PATTERNS[name]
    nested = nested_of(pattern, torch.float32)
    slim = nested.extract(nested.space.sample(torch.Generator().manual_seed(1)))
    inputs = pattern.example(2, torch.float32)
    assert nestify.export(slim, folder / "slim.onnx", example_inputs=inputs).error <= 1e-5
    report = nestify.export(nested.extract({}), folder / "all.onnx", example_inputs=inputs)
    if report.free_batch:
        _at_another_batch(pattern, report, pattern.example(5, torch.float32))


def _at_another_batch(pattern: Pattern, report: Any, inputs: Any) -> None:
    """The file of the whole network is the original there."""
    import onnxruntime

    tensors = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, torch.Tensor)]
    session = onnxruntime.InferenceSession(report.path)
    fed = {name: t.numpy() for name, t in zip(report.inputs, tensors, strict=True)}
    found = [torch.from_numpy(array) for array in session.run(None, fed)]
    with torch.no_grad():
        expected = pytree.tree_leaves(pattern.build(torch.float32)(*inputs))
    assert relative_error(expected, found) <= 1e-4


_EXPORTABLE = [name for name, pattern in PATTERNS.items() if pattern.exports]


@pytest.mark.parametrize("name", _EXPORTABLE[::EVERY_NTH_SHIPS])
def test_some_ship_to_onnxruntime(name: str, tmp_path: Path) -> None:
    ship(name, tmp_path)


@pytest.mark.campaign
@pytest.mark.parametrize("name", _EXPORTABLE)
def test_all_ship_to_onnxruntime(name: str, tmp_path: Path) -> None:
    ship(name, tmp_path)
