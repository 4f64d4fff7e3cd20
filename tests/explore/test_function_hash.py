"""How an evaluate is recognised: its code and its data, in every process alike."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import functools
import os
import re
import subprocess
import sys
import warnings
from collections import defaultdict, deque
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nestify.explore.evaluator import Evaluator
from nestify.explore.function_hash import codeprint
from tests.fakes import chain


def evaluator(function: Any, batches: Any = None) -> Evaluator:
    return Evaluator(cast(Any, chain(2)), function, batches)


LIMIT = 3


def limited(x: int) -> int:
    return min(x, LIMIT)


def helper(x: int) -> int:
    return x + 1


def outer(x: int) -> int:
    return helper(x)


class Scorer:
    def __init__(self, data: Tensor) -> None:
        self.data = data

    def __call__(self, model: nn.Module) -> float:
        return float(self.data.sum())


def test_the_same_code_and_data_have_the_same_print() -> None:
    def made(data: Any) -> Any:
        return lambda model: float(data[0])

    assert codeprint(made([1, 2])) == codeprint(made([1, 2]))
    assert codeprint(made([1, 2])) != codeprint(made([1, 3]))
    assert codeprint(Scorer(torch.ones(3))) == codeprint(Scorer(torch.ones(3)))
    assert codeprint(Scorer(torch.ones(3))) != codeprint(Scorer(torch.zeros(3)))
    assert codeprint({"a", "b", "c"}) == codeprint({"c", "a", "b"})
    assert codeprint(np.arange(4)) != codeprint(np.arange(4.0))


def test_what_a_function_names_in_its_module_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = codeprint(limited), codeprint(outer)
    monkeypatch.setattr(f"{__name__}.LIMIT", 4)
    monkeypatch.setattr(f"{__name__}.helper", limited)
    after = codeprint(limited), codeprint(outer)
    assert before[0] != after[0]
    assert before[1] != after[1]


def test_what_refers_to_itself_ends() -> None:
    ring: list[Any] = [1]
    ring.append(ring)
    assert codeprint(ring) == codeprint(ring)

    def recursive(x: int) -> int:
        return x and recursive(x - 1)

    assert codeprint(recursive)


def test_modules_count_by_their_weights() -> None:
    torch.manual_seed(0)
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    assert codeprint(one) != codeprint(other)
    other.load_state_dict(one.state_dict())
    assert codeprint(one) == codeprint(other)


class Slotted:
    __slots__ = ("more", "x")

    def __init__(self, x: int) -> None:
        self.x = x


@dataclasses.dataclass
class Config:
    rate: float


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Scaled(nn.Module):
    def __init__(self, scale: float, offset: float) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("offset", torch.tensor(offset), persistent=False)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def advanced(items: list[int]) -> Any:
    found = iter(items)
    next(found)
    return found


def cached(function: Any) -> Any:
    return functools.lru_cache(function)


def loader(*values: float, batch: int = 1) -> Any:
    return DataLoader(TensorDataset(torch.tensor(values)), batch_size=batch)


def hooked(hook: Any) -> nn.Module:
    net = nn.Identity()
    net.register_forward_hook(hook)
    return net


def traced(net: nn.Module) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, but still in use
        return torch.jit.trace(net, torch.ones(2))


def compiled(function: Any) -> Any:
    return torch.compile(function, backend="eager")


def noted(note: int) -> Any:
    def function(x: int) -> int:
        return x

    function.note = note  # pyright: ignore[reportFunctionMemberAccess]
    return function


def deep(value: int, depth: int = 40) -> Any:
    return [deep(value, depth - 1)] if depth else value


DIFFERENT: dict[str, tuple[Any, Any]] = {
    "partial, function": (
        lambda: functools.partial(helper, 1),
        lambda: functools.partial(outer, 1),
    ),
    "partial, argument": (
        lambda: functools.partial(helper, 1),
        lambda: functools.partial(helper, 2),
    ),
    "path": (lambda: Path("a"), lambda: Path("b")),
    "range": (lambda: range(3), lambda: range(4)),
    "integer": (lambda: np.int64(1), lambda: np.int64(2)),
    "float": (lambda: np.float32(1), lambda: np.float32(2)),
    "dtype": (lambda: torch.float32, lambda: torch.float64),
    "device": (lambda: torch.device("cpu"), lambda: torch.device("meta")),
    "numpy dtype": (lambda: np.dtype("f4"), lambda: np.dtype("f8")),
    "deque": (lambda: deque([1]), lambda: deque([2])),
    "default": (lambda: defaultdict(int, a=1), lambda: defaultdict(int, a=2)),
    "slice": (lambda: slice(1), lambda: slice(2)),
    "bytearray": (lambda: bytearray(b"a"), lambda: bytearray(b"b")),
    "date": (lambda: datetime.date(2020, 1, 1), lambda: datetime.date(2020, 1, 2)),
    "pattern": (lambda: re.compile("a"), lambda: re.compile("b")),
    "slots": (lambda: Slotted(1), lambda: Slotted(2)),
    "dataclass": (lambda: Config(1), lambda: Config(2)),
    "enum": (lambda: Colour.RED, lambda: Colour.BLUE),
    "builtins": (lambda: max, lambda: min),
    "torch's": (lambda: torch.mean, lambda: torch.sum),
    "methods in C": (lambda: [1].count, lambda: [2].count),
    "ufuncs": (lambda: np.exp, lambda: np.log),
    "ops": (lambda: torch.ops.aten.relu.default, lambda: torch.ops.aten.gelu.default),
    "generator": (lambda: seeded(0), lambda: seeded(1)),
    "numpy generator": (lambda: np.random.default_rng(0), lambda: np.random.default_rng(1)),
    "iterator": (lambda: iter([1]), lambda: iter([2])),
    "iterator, moved": (lambda: iter([1, 2]), lambda: advanced([1, 2])),
    "objects in an array": (
        lambda: np.array(["cat"], dtype=object),
        lambda: np.array(["dog"], dtype=object),
    ),
    "masked": (
        lambda: np.ma.array([1, 2], mask=[0, 1]),
        lambda: np.ma.array([1, 2], mask=[1, 0]),
    ),
    "attribute of a module": (lambda: Scaled(1, 0), lambda: Scaled(2, 0)),
    "buffer that is not saved": (lambda: Scaled(1, 0), lambda: Scaled(1, 1)),
    "hook": (lambda: hooked(helper), lambda: hooked(limited)),
    "mode": (lambda: nn.Dropout().train(), lambda: nn.Dropout().eval()),
    "loader": (lambda: loader(1.0, 2.0), lambda: loader(1.0, 3.0)),
    "batch size": (lambda: loader(1.0, 2.0), lambda: loader(1.0, 2.0, batch=2)),
    "coo": (lambda: torch.eye(2).to_sparse(), lambda: 2 * torch.eye(2).to_sparse()),
    "csr": (lambda: torch.eye(2).to_sparse_csr(), lambda: (2 * torch.eye(2)).to_sparse_csr()),
    "csc": (lambda: torch.eye(2).to_sparse_csc(), lambda: (2 * torch.eye(2)).to_sparse_csc()),
    "conjugate": (lambda: torch.tensor([1j]), lambda: torch.tensor([1j]).conj()),
    "cache": (lambda: cached(helper), lambda: cached(limited)),
    "no_grad": (lambda: torch.no_grad()(helper), lambda: torch.no_grad()(limited)),
    "modes of torch": (lambda: torch.no_grad()(helper), lambda: torch.enable_grad()(helper)),
    "compiled": (lambda: compiled(helper), lambda: compiled(limited)),
    "method": (lambda: Scorer(torch.ones(2)).__call__, lambda: Scorer(torch.zeros(2)).__call__),
    "attribute of a function": (lambda: noted(1), lambda: noted(2)),
    "depth": (lambda: deep(1), lambda: deep(2)),
    "script": (lambda: traced(nn.ReLU()), lambda: traced(nn.GELU())),
    "context": (lambda: ContextVar("a"), lambda: ContextVar("b")),
    "set": (lambda: {(1, "a"), (2, "b")}, lambda: {(1, "b"), (2, "a")}),
    "set of objects": (lambda: {Path("a"), Path("b")}, lambda: {Path("a"), Path("c")}),
}


@pytest.mark.parametrize(("make", "other"), DIFFERENT.values(), ids=DIFFERENT.keys())
@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
@pytest.mark.parametrize("held", ["itself", "closure", "attribute"])
def test_other_values_have_another_print(make: Any, other: Any, held: str) -> None:
    def print_of(value: Any) -> str:
        made = {"itself": value, "closure": lambda: value, "attribute": Scorer(value)}
        return codeprint(made[held])

    assert print_of(make()) == print_of(make())
    assert print_of(make()) != print_of(other())


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_count_by_their_values(layout: torch.layout) -> None:
    def made(value: float) -> Tensor:
        parts = [torch.full((n, 2), value) for n in (1, 3)]
        return torch.nested.nested_tensor(parts, layout=layout)

    assert codeprint(made(1.0)) == codeprint(made(1.0))
    assert codeprint(made(1.0)) != codeprint(made(2.0))


THING: Any = None


def names_it(x: int) -> Any:
    return [THING for _ in range(x)]


def names_its_function(x: Tensor) -> Tensor:
    return THING.relu(x)


@pytest.mark.parametrize(("make", "other"), DIFFERENT.values(), ids=DIFFERENT.keys())
@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
def test_other_globals_have_another_print(
    make: Any, other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def print_of(value: Any) -> str:
        monkeypatch.setattr(f"{__name__}.THING", value)
        return codeprint(names_it)

    assert print_of(make()) == print_of(make())
    assert print_of(make()) != print_of(other())


def test_functions_of_a_module_count(monkeypatch: pytest.MonkeyPatch) -> None:
    def print_of(value: Any) -> str:
        monkeypatch.setattr(f"{__name__}.THING", value)
        return codeprint(names_its_function)

    mine = ModuleType("mine")
    prints = [print_of(F), print_of(SimpleNamespace(relu=F.relu))]
    for relu in (F.relu, F.gelu, helper, limited):
        mine.relu = relu  # pyright: ignore[reportAttributeAccessIssue]
        prints.append(print_of(mine))
    assert len(set(prints)) == len(prints)
    with monkeypatch.context() as patched:
        patched.setattr(F, "relu", F.gelu)
        assert print_of(F) != prints[0]
    assert print_of(F) == prints[0]


def test_methods_of_a_class_count(monkeypatch: pytest.MonkeyPatch) -> None:
    def makes_one() -> float:
        return Scorer(torch.ones(2))(nn.Identity())

    class Derived(Scorer):
        pass

    valued = Scorer(torch.ones(2)), makes_one, Scorer, Derived
    before = [codeprint(value) for value in valued]
    monkeypatch.setattr(Scorer, "__call__", lambda self, model: 0.5)
    assert all(codeprint(value) != old for value, old in zip(valued, before, strict=True))


@pytest.mark.parametrize("kind", [property, staticmethod, classmethod, functools.cached_property])
def test_what_wraps_a_method_counts(kind: Any) -> None:
    one, other = (type("Made", (), {"m": kind(function)}) for function in (helper, limited))
    assert codeprint(one) != codeprint(other)


class Friend:
    friends: set[Friend]


def test_sets_that_refer_to_themselves_end() -> None:
    def made(count: int) -> list[Any]:
        nodes = [Friend() for _ in range(count)]
        for node in nodes:
            node.friends = {friend for friend in nodes if friend is not node}
        return nodes

    assert codeprint(made(4)) == codeprint(made(4)) != codeprint(made(3))


ACROSS = """
import sys
sys.path.insert(0, {tests!r})
from tests.explore.test_function_hash import DIFFERENT, evaluator, codeprint
for one, other in DIFFERENT.values():
    print(codeprint(one()), codeprint(other()))
"""


def test_prints_are_the_same_in_every_process() -> None:
    script = ACROSS.format(tests=str(Path(__file__).parents[2]))
    outputs = [
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1]
    assert len(outputs[0].splitlines()) == len(DIFFERENT)
