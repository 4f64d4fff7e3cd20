"""What is asked of a user's function, and what it may be given."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

import nestify
from nestify.errors import CaptureError, UsageError
from nestify.explore import search
from nestify.explore.evaluator import Evaluator
from nestify.explore.function_hash import codeprint
from nestify.space import Subnet
from tests.fakes import chain


def evaluator(function: Any, batches: Any = None) -> Evaluator:
    return Evaluator(cast(Any, chain(2)), function, batches)


def test_parts_are_batches() -> None:
    whole = evaluator(lambda model: 0.5)
    each = evaluator(lambda model, batch: np.full(3, batch), [1.0, 2.0])
    largest = whole.nested.space.largest()
    assert (whole.parts, each.parts) == (1, 2)
    assert whole.run(largest, 0).tolist() == [0.5]
    assert each.run(largest, 1).tolist() == [2.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (0.5, r"the score of each sample, a tensor of one dim; got shape \(\)"),
        (torch.ones(2, 2), r"got shape \(2, 2\)"),
        (torch.ones(0), r"got shape \(0,\)"),
        (torch.tensor([1.0, float("nan")]), "sample 1 is not"),
        ("good", "the score of each sample"),
        (None, "the score of each sample"),
        (["1", "2"], "the score of each sample, not a list"),
        ([10**400], "the score of each sample, not a list"),
        (torch.ones(2) * 1j, "the score of each sample, not a Tensor"),
        (np.ones(2) * 1j, "the score of each sample, not a ndarray"),
        (torch.ones(2, device="meta"), "the score of each sample, not a Tensor"),
    ],
)
def test_scores_of_a_batch_are_checked(values: Any, message: str) -> None:
    judged = evaluator(lambda model, batch: values, [0])
    with pytest.raises(UsageError, match=message):
        judged.run(judged.nested.space.largest(), 0)


@pytest.mark.parametrize(
    "value",
    [10**400, "0.5", b"1", 1j, torch.tensor(1j), torch.ones(3), torch.ones(1, device="meta")],
)
def test_a_score_is_a_number(value: Any) -> None:
    judged = evaluator(lambda model: value)
    with pytest.raises(UsageError, match="must return a number, not"):
        judged.run(judged.nested.space.largest(), 0)


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, torch.bool])
def test_scores_of_a_batch_may_be_tensors_each(kind: Any) -> None:
    """With gradients too, as of an evaluate without no_grad."""
    one = torch.ones((), dtype=kind, requires_grad=kind.is_floating_point)
    judged = evaluator(lambda model, batch: [one, 0 * one], [0])
    assert judged.run(judged.nested.space.largest(), 0).tolist() == [1.0, 0.0]


def test_data_that_fail_show_their_line() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("no disk")

    for name in ("batches", "calibrate"):
        with pytest.raises(CaptureError, match=rf"{name}= failed: OSError: no disk \(test_eval"):
            search(cast(Any, chain(2)), lambda model, batch: [1.0], **{name: broken()})
    nested, x = small_net()
    with pytest.raises(CaptureError, match=r"calibrate=, batches of inputs such as \[x\], failed:"):
        search(nested, lambda model: 0.5, calibrate=cast(Any, x))


@pytest.mark.parametrize("stored", [False, True])
def test_a_batch_has_as_many_scores_under_every_subnet(stored: bool, tmp_path: Path) -> None:
    """They are compared sample by sample, and their mean is over all of them."""
    storage = tmp_path / "scores.db" if stored else None

    def confident(model: Any, batch: int) -> list[float]:
        return [1.0] * (20 - (batch == 1 and min(model.active.values()) < 64))

    for method in ("fn3", "random"):
        with pytest.raises(
            UsageError,
            match=r"as many under every subnet: of batch 1 it returned 20 under Subnet\(.*64.*\) "
            r"and 19 under Subnet",
        ):
            search(cast(Any, chain(2)), confident, batches=[0, 1], method=method, storage=storage)


def test_a_name_stands_for_one_split_of_the_data() -> None:
    """Scores are kept by batch: those of another split are of other samples."""
    x = torch.zeros(48, 3)

    def named(batches: Any) -> str:
        function: Any = abs
        return Evaluator(cast(Any, chain(2)), function, batches, name="mine").fingerprint

    def pairs(size: int) -> list[Any]:
        return [{"x": part, "y": part[:, 0].numpy()} for part in x.split(size)]

    prints = [
        named(batches)
        for batches in (
            None,
            x.split(16),
            x.split(24),
            x.split(16)[:2],
            pairs(16),
            pairs(24),
            [[1, 2, 3], [4, 5]],
            [[1, 2], [3, 4, 5]],
            [object(), object()],
        )
    ]
    assert len(set(prints)) == len(prints)
    assert named(x.split(16)) == named((x + 1).split(16)), "what the data are is said by the name"
    assert named([object(), object()]) == prints[-1]


def test_no_batches_are_refused() -> None:
    with pytest.raises(UsageError, match="batches= holds no batch"):
        evaluator(lambda model, batch: [1.0], [])
    with pytest.raises(UsageError, match="batches= are for an evaluate"):
        search(cast(Any, chain(2)), batches=[1])


# a real model -----------------------------------------------------------------------------------


def test_every_subnet_is_calibrated_before_it_is_scored() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 3))
    nested = nestify.transform(net, "fn3-channel{where=all}", (torch.randn(2, 1, 9, 9),))
    x = torch.randn(16, 1, 9, 9) * 3 + 1
    scores: dict[Subnet, float] = {}

    @torch.no_grad()
    def evaluate(model: nn.Module) -> float:
        scores[nested.active] = model(x).double().sum().item()
        return scores[nested.active]

    search(nested, evaluate, calibrate=[x[:8], x[8:]], max_evaluations=6)
    for subnet, score in scores.items():
        slim = nested.extract(subnet, calibrate=[x[:8], x[8:]]).eval()
        assert slim(x).double().sum().item() == pytest.approx(score, rel=1e-5)


def small_net() -> tuple[nestify.NestedModel, torch.Tensor]:
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 3)
    x = torch.randn(4, 1, 9, 9)
    return nestify.transform(nn.Sequential(*layers), "fn3-channel{where=all}", (x,)), x


def tune(model: nn.Module, x: torch.Tensor) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(x).square().mean().backward()
    optimizer.step()


def add_by_data(model: nn.Module, x: torch.Tensor) -> None:
    next(model.parameters()).data.add_(x.mean())


def put_another(model: nn.Module, x: torch.Tensor) -> None:
    first = cast(Any, model).get_submodule("0")
    first.weight = nn.Parameter(first.weight + x.mean())


@pytest.mark.parametrize("change", [tune, add_by_data, put_another])
def test_an_evaluate_that_changes_the_weights_is_refused(change: Any) -> None:
    """The scores of later subnets would be of another network."""
    nested, x = small_net()

    def evaluate(model: nn.Module) -> float:
        change(model, x)
        return 0.5

    with pytest.raises(UsageError, match=r"evaluate changed the weights .*'0\.weight'.*extract"):
        search(nested, evaluate, max_evaluations=4, method="uniform")


def test_a_worker_notices_changed_weights() -> None:
    nested, x = small_net()

    def evaluate(model: nn.Module) -> float:
        tune(model, x)
        return 0.5

    with pytest.raises(UsageError, match="evaluate changed the weights"):
        search(nested, evaluate, max_evaluations=4, method="uniform", workers=2)


def test_what_leaves_the_weights_as_they_were_is_no_change() -> None:
    """Averages that are swapped in and out, statistics of norms, another layout, a copy tuned."""
    nested, x = small_net()

    def evaluate(model: nn.Module) -> float:
        with torch.no_grad():
            kept = [parameter.clone() for parameter in model.parameters()]
            for parameter in model.parameters():
                parameter.mul_(0.5)
            model.train()(x)
            score = -float(model.eval()(x).square().mean())
            for parameter, before in zip(model.parameters(), kept, strict=True):
                parameter.copy_(before)
        cast(Any, model).to(memory_format=torch.channels_last)
        tune(nested.extract(nested.active), x)
        return score

    plan = search(nested, evaluate, max_evaluations=4, method="uniform", calibrate=[x])
    assert len(plan.points) == 4


def write(batch: dict[str, torch.Tensor]) -> None:
    batch["x"].div_(255)


def replace(batch: dict[str, torch.Tensor]) -> None:
    batch["x"] = batch["x"] - 1


def write_a_view(batch: dict[str, torch.Tensor]) -> None:
    batch["x"][0] += 1


@pytest.mark.parametrize("change", [write, replace, write_a_view])
def test_an_evaluate_that_changes_its_batches_is_refused(change: Any) -> None:
    """Every subnet would be scored on other data than the one before."""

    def evaluate(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        change(batch)
        return batch["x"].mean(1)

    batches = [{"x": torch.rand(4, 3) + 1} for _ in range(3)]
    with pytest.raises(UsageError, match=r"evaluate changed batch 0 each time.*work on a copy"):
        search(cast(Any, chain(2)), evaluate, batches=batches)


def test_what_changes_a_batch_once_is_no_change() -> None:
    """As a first layer that works in place, and a batch that is taken to its device."""

    def evaluate(model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        batch["x"] = batch["x"].clone().relu_()
        batch["y"].clamp_(0, 1)
        batch["sparse"] = batch["sparse"].coalesce()
        return batch["x"].mean(1)

    data = {"x": torch.randn(4, 3), "y": torch.randn(4), "sparse": torch.eye(2).to_sparse()}
    assert search(cast(Any, chain(2)), evaluate, batches=[data], max_evaluations=5).points


def test_an_evaluate_may_close_over_the_nested_model() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    nested = nestify.transform(net, "fn3-neuron", (torch.randn(2, 4),))

    def evaluate(model: nn.Module) -> float:
        return float(nested.active["1"]) if model is nested else 0.0

    before = codeprint(evaluate)
    with nested.activate(nested.space.smallest()):
        assert codeprint(evaluate) == before, "every subnet is of the same evaluate"
    with torch.no_grad():
        next(nested.parameters()).add_(1)
    assert codeprint(evaluate) != before


def test_a_search_reuses_what_subnets_share() -> None:
    """The same plan with and without; as a plain loop evaluates, the same but for rounding."""
    torch.manual_seed(0)
    layers = [m for _ in range(5) for m in (nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())]
    net = nn.Sequential(nn.Conv2d(1, 8, 3), *layers).eval()
    x = torch.randn(4, 1, 9, 9)
    nested = nestify.transform(net, "fn3-channel{where=all}", (x,))

    @torch.no_grad()
    def evaluate(model: nn.Module) -> float:
        return -model(x).double().square().sum().item()

    plain, fresh, shared = (
        search(nested, evaluate, evaluator="e", reuse_bytes=size, max_evaluations=40)
        for size in (0, 1, 1 << 24)
    )
    assert [p.score for p in fresh.points] == [p.score for p in shared.points]
    assert [p.subnet for p in fresh.points] == [p.subnet for p in shared.points]
    known = {p.subnet: p.score for p in plain.points}
    alike = [p for p in shared.points if p.subnet in known]
    assert len(alike) > 20
    assert [p.score for p in alike] == pytest.approx([known[p.subnet] for p in alike], rel=1e-5)
