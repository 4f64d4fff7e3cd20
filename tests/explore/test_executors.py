"""Several processes and a Ray cluster: the plan of one process, for the same seed."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nestify
from nestify import NestedModel, Plan, UsageError
from nestify.cli.model_reference import load_source
from nestify.explore.evaluator import Evaluator
from nestify.explore.pickling import Worker, pack
from nestify.explore.storage import stored_scores
from nestify.space import Subnet
from nestify.targets import Target

ray = pytest.importorskip("ray")


@pytest.fixture(autouse=True)
def still_target(monkeypatch: pytest.MonkeyPatch) -> None:
    """A target on which everything takes a millisecond."""
    monkeypatch.setitem(nestify.targets.TARGETS, "sim", "tests.fakes:SIM")
    sim = Target("sim", "still", 1, lambda model, args, kwargs: 1.0)
    monkeypatch.setattr("tests.fakes.SIM", sim, raising=False)


class Net(nn.Module):
    """A class of a test module, which workers can import."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU()
        )
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


def nested_net(recipe: str = "fn3-channel{where=all}") -> NestedModel:
    torch.manual_seed(0)
    return nestify.transform(Net().eval(), recipe, (torch.randn(2, 1, 8, 8),))


X = torch.randn(96, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def searched(nested: NestedModel, workers: int | str, storage: Path | None = None) -> Plan:
    """By a function of this test: a closure, which plain pickle refuses."""
    with nested.activate(None), torch.no_grad():
        labels = nested.eval()(X).argmax(1)

    @torch.no_grad()
    def evaluate(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (model(batch[0]).argmax(1) == batch[1]).double()

    return nestify.search(
        nested,
        evaluate,
        batches=list(zip(X.split(24), labels.split(24), strict=True)),
        calibrate=[X[:32]],
        target="sim",
        max_evaluations=24,
        workers=workers,
        storage=storage,
        seed=3,
    )


@pytest.fixture
def foreign_handler() -> Iterator[logging.Handler]:
    """A user's handler on Ray's logger, with a format of its own."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("mine %(message)s"))
    logger = logging.getLogger("ray")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


@pytest.mark.parametrize("workers", [2, "ray:2"])
def test_workers_change_nothing(
    workers: int | str, tmp_path: Path, foreign_handler: logging.Handler
) -> None:
    nested = nested_net()
    alone = searched(nested, 1)
    file = tmp_path / "search.db"
    level, formatter = logging.getLogger("ray").level, foreign_handler.formatter
    assert searched(nested, workers, file) == alone
    assert (logging.getLogger("ray").level, foreign_handler.formatter) == (level, formatter)
    rows = stored_scores(file)
    assert rows > 24, "each batch is a row"
    assert searched(nested, 1, file) == alone
    assert stored_scores(file) == rows, "one process goes on where several stopped"


def there(evaluator: Evaluator, subnet: Subnet) -> list[float]:
    """What a worker makes of a subnet."""
    samples, _ = Worker(pack(evaluator), torch.get_num_threads()).run(dict(subnet), 0)
    return samples.tolist()


@pytest.mark.parametrize("scaling", ["none", "expected"])
@pytest.mark.parametrize("recipe", ["fn3-channel{where=all}", "root-2+fn3-channel{where=all}"])
def test_a_model_arrives_whole(recipe: str, scaling: str) -> None:
    """Also one whose weights were changed after it was nested."""
    nested = nested_net(recipe)
    nested.scaling = scaling
    with torch.no_grad():
        for parameter in nested.parameters():
            parameter.add_(torch.randn_like(parameter))
    evaluator = Evaluator(nested, lambda model: model(X).double().sum().item())
    subnet = nested.space.at(0.5)
    assert there(evaluator, subnet) == evaluator.run(subnet, 0).tolist()


class ByName(nn.Module):
    """A model that takes its input by its name alone."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, *, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu())


class Decides(ByName):
    """A model whose output has no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x=x).argmax(1)


@pytest.mark.parametrize("kind", [ByName, Decides])
def test_a_model_that_was_ranked_arrives(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 6)
    inputs = ((), {"x": x}) if kind is ByName else ((x,), {})
    nested = nestify.transform(kind().eval(), "rank+fn3-neuron", *inputs)

    @torch.no_grad()
    def evaluate(model: nn.Module) -> float:
        args, kwargs = inputs
        return float(model(*args, **kwargs).double().sum())

    evaluator = Evaluator(nested, evaluate)
    subnet = nested.space.at(0.5)
    assert there(evaluator, subnet) == evaluator.run(subnet, 0).tolist()


@pytest.mark.parametrize("rewrite", ["rank{by=taylor}", "root-2{init=project}"])
def test_a_worker_needs_no_data_of_the_passes(rewrite: str) -> None:
    torch.manual_seed(0)
    calibration = [(X[:32], torch.randint(4, (32,)))]
    recipe = f"{rewrite}+fn3-channel{{where=all}}"
    nested = nestify.transform(Net().eval(), recipe, (X[:2],), calibration=calibration)
    evaluator = Evaluator(nested, lambda model: model(X).double().sum().item())
    subnet = nested.space.at(0.5)
    assert there(evaluator, subnet) == evaluator.run(subnet, 0).tolist()


MODEL_FILE = """
import torch
from torch import nn

class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.b(self.a(x).relu())

def model():
    return Own().eval()

example_inputs = (torch.ones(4, 6),)

@torch.no_grad()
def evaluate(net):
    return float(net(*example_inputs).sum())
"""


def test_what_a_model_file_defines_arrives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker has no module of that name, nor the file."""
    file = tmp_path / "own.py"
    file.write_text(MODEL_FILE)
    monkeypatch.syspath_prepend(tmp_path)
    source = load_source(str(file))
    nested = nestify.transform(source.model, "fn3-neuron", source.example_inputs)
    evaluator = Evaluator(nested, source.evaluate or pytest.fail)
    packed = pack(evaluator)
    monkeypatch.delitem(sys.modules, source.model.__module__)
    subnet = nested.space.at(0.5)
    samples, _ = Worker(packed, torch.get_num_threads()).run(dict(subnet), 0)
    assert samples.tolist() == evaluator.run(subnet, 0).tolist()


class Camera:
    """What is pickled and cannot be unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _open, ()


def _open() -> Camera:
    raise OSError("no such camera")


def test_a_worker_that_cannot_begin_says_why() -> None:
    camera = Camera()
    worker = Worker(pack(Evaluator(nested_net(), lambda model: id(camera))), 1)
    with pytest.raises(UsageError, match=r"OSError: no such camera .*test_executors.*workers=1"):
        worker.run({}, 0)


def test_what_cannot_be_sent_is_said() -> None:
    held = threading.Lock()
    with pytest.raises(UsageError, match=r"cannot be sent to workers .*lock.*workers=1"):
        pack(Evaluator(nested_net(), lambda model: held.locked()))


@pytest.mark.parametrize("workers", [0, -1, "dask", "ray:", "ray:0", "ray:x", "ray:²"])
def test_unknown_workers_are_refused(workers: Any) -> None:
    with pytest.raises(UsageError, match=r"workers of search .* from 1 on, or 'ray' or 'ray:N'"):
        searched(nested_net(), workers)


@pytest.mark.parametrize("workers", [2, "ray:2"])
def test_an_evaluate_that_fails_in_a_worker_shows_its_line(workers: int | str) -> None:
    def broken(model: nn.Module) -> float:
        return [0.5][3]

    with pytest.raises(nestify.CaptureError, match=r"^evaluate.*IndexError.*return \[0.5\]"):
        nestify.search(nested_net(), broken, target="sim", workers=workers)


@pytest.mark.parametrize("workers", [2, "ray:2"])
def test_a_worker_that_dies_is_said(workers: int | str) -> None:
    with pytest.raises(nestify.CaptureError, match=r"a worker process died.*try workers=1"):
        nestify.search(nested_net(), lambda model: os._exit(3), target="sim", workers=workers)


def test_missing_ray_is_said_before_anything_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nestify.explore.executors.find_spec", lambda name: None)

    def never(model: nn.Module) -> float:
        raise AssertionError

    with pytest.raises(UsageError, match=r"workers='ray:2' needs Ray: pip install nestify\[ray\]"):
        nestify.search(nested_net(), never, target="sim", workers="ray:2")
