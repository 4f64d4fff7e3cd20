"""``rank`` in recipes: golden orders, other passes, plans, workers, and the guide."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import nestify
from nestify.analysis import importance, payoff
from nestify.explore.evaluator import Evaluator
from nestify.explore.pickling import pack
from nestify.passes import parse_recipe
from nestify.support.closeness import relative_error
from tests.analysis.test_payoffs import MODEL as FILE
from tests.cli.conftest import nestify as run
from tests.passes.rank.nets import WAYS, images, labelled, net
from tests.passes.test_passes import MODELS

Golden = Callable[[str, str], None]


@pytest.mark.parametrize("model", MODELS)
def test_orders_of_small_networks(model: str, golden: Golden) -> None:
    cls, shape = MODELS[model]
    original = cls().double().eval()
    with torch.no_grad():
        for i, tensor in enumerate(original.state_dict().values()):
            if tensor.is_floating_point():
                wave = torch.cos(torch.arange(tensor.numel()) * 1.7 + i).double()
                tensor.copy_((0.6 + 0.4 * wave if tensor.ndim < 2 else wave).view(tensor.shape))
    x = torch.sin(torch.arange(3 * math.prod(shape)) * 0.7).double().view(3, *shape[1:])
    lines: list[str] = []
    for by in WAYS:
        nested = nestify.transform(original, f"rank{{by={by}}}", (x,), calibration=[x])
        lines += [nested.graph.changes[0].what, ""]
        for name, values in importance(nested, by, calibration=[x]).items():
            lines.append(f"{name}: {' '.join(f'{value:.3g}' for value in values.tolist())}")
        lines.append("")
    golden(f"rank/{model}.txt", "\n".join(lines))


def test_the_default_is_hessian_with_data_and_magnitude_without() -> None:
    x = images(1)[0]
    said = [
        nestify.transform(net(), "rank", (x,), calibration=data).graph.changes[0].what
        for data in (None, labelled(1))
    ]
    assert said == [
        "2 groups in the order of importance by magnitude",
        "2 groups in the order of importance by hessian on 1 batch, loss: cross-entropy",
    ]


def test_it_is_no_rewrite_that_could_pay() -> None:
    x = images(1)[0]
    ranked = nestify.transform(net(), "rank+fn3-channel", (x,))
    assert ranked.graph.original is None
    with pytest.raises(nestify.UsageError, match="rewrites nothing"):
        payoff(ranked)
    convs = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 1)).double()
    both = nestify.transform(convs, "rank+root-4", (x,))
    assert [change.recipe for change in both.graph.changes] == ["rank", "root-4"]
    assert payoff(both, layers=False).recipe == "root-4"


def test_plan_ranks_by_the_calibration_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(FILE)
    recipe = ("--recipe", "rank{by=taylor}+fn3-channel{where=all}")
    done = run(tmp_path, "plan", "model.py", *recipe, "--evaluations", "4", "--out", "plan")
    assert done.code == 0, done.stderr
    assert "saves" not in done.stdout
    same = run(tmp_path, "verify", "model.py", *recipe, "--subnets", "1")
    assert same.code == 0, same.stderr


def test_two_passes_read_a_generator_of_batches() -> None:
    torch.manual_seed(0)
    convs = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 1)).double()
    batches = images()
    nested = nestify.transform(
        convs, "rank{by=activation}+root-4{init=project}", (batches[0],), calibration=iter(batches)
    )
    assert nested.get_submodule("1").groups == 4


class Pair(nn.Module):
    """Two inputs, as a batch (inputs, labels) has two parts."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(4, 6), nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.head((self.left(x) + self.right(y)).relu())


def test_workers_get_the_order_that_was_found_here() -> None:
    torch.manual_seed(0)
    inputs = (torch.randn(5, 4), torch.randn(5, 3))
    nested = nestify.transform(
        Pair(), "rank{by=hessian}+fn3-neuron", inputs, calibration=[(inputs, torch.arange(5) % 2)]
    )
    there: Any = pickle.loads(pack(Evaluator(nested, parameters_of)))
    assert relative_error(nested.eval()(*inputs), there.nested.eval()(*inputs)) == 0


def parameters_of(model: nn.Module) -> float:
    return float(sum(p.numel() for p in model.parameters()))


def test_options_are_read_from_text() -> None:
    (step,) = parse_recipe("rank{by=activation}")
    assert repr(step) == "Rank(by='activation')"
