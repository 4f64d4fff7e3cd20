"""What is asked of a user's function, how it is recognised, and what it may be given."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import nestify
from nestify.errors import UsageError
from nestify.explore import search
from nestify.explore.codeprints import codeprint
from nestify.explore.evaluators import Evaluator
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
    ],
)
def test_scores_of_a_batch_are_checked(values: Any, message: str) -> None:
    judged = evaluator(lambda model, batch: values, [0])
    with pytest.raises(UsageError, match=message):
        judged.run(judged.nested.space.largest(), 0)


def test_no_batches_are_refused() -> None:
    with pytest.raises(UsageError, match="batches= holds no batch"):
        evaluator(lambda model, batch: [1.0], [])
    with pytest.raises(UsageError, match="batches= are for an evaluate"):
        search(cast(Any, chain(2)), batches=[1])


# fingerprints -----------------------------------------------------------------------------------

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


def test_a_search_reuses_what_subnets_share() -> None:
    """The same plan with and without, and most calls left out with it."""
    torch.manual_seed(0)
    layers = [m for _ in range(5) for m in (nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())]
    net = nn.Sequential(nn.Conv2d(1, 8, 3), *layers).eval()
    x = torch.randn(4, 1, 9, 9)
    nested = nestify.transform(net, "fn3-channel{where=all}", (x,))

    @torch.no_grad()
    def evaluate(model: nn.Module) -> float:
        return -model(x).double().square().sum().item()

    plans = [
        search(nested, evaluate, evaluator="e", reuse_bytes=size, max_evaluations=40)
        for size in (0, 1 << 24)
    ]
    assert [p.score for p in plans[0].points] == [p.score for p in plans[1].points]
    assert [p.subnet for p in plans[0].points] == [p.subnet for p in plans[1].points]
