"""Every model that torch.export can capture transforms, and every subnet of it is exact.

``make test`` runs the models that are marked as a sample, ``make zoo`` all of them.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from _pytest.mark import ParameterSet

import nestify
from tests.laws.equalities import EVERYTHING
from tests.zoo import report
from tests.zoo.laws import check_training_step, check_zoo_laws, compiled
from tests.zoo.model import ZooModel
from tests.zoo.timm_rows import TIMM
from tests.zoo.torchvision_rows import TORCHVISION
from tests.zoo.transformers_rows import TRANSFORMERS
from tests.zoo.wild_rows import WILD

ZOO = (*TORCHVISION, *TIMM, *TRANSFORMERS, *WILD)


def chosen(models: Iterable[ZooModel]) -> list[ParameterSet]:
    """Samples run in every suite, the others by their marker."""
    return [
        pytest.param(model, id=model.name, marks=[] if model.sample else [pytest.mark.zoo])
        for model in models
    ]


@pytest.mark.parametrize("model", chosen(m for m in ZOO if not m.not_captured))
@pytest.mark.filterwarnings("default")  # those of the libraries, on their own models
def test_exact(model: ZooModel, request: pytest.FixtureRequest) -> None:
    """All laws on 5 random subnets and 5 sets of positions; the row of docs/zoo.md is current."""
    net, inputs = model.make()
    nested, notes = compiled(net, inputs)
    check_zoo_laws(net, nested, inputs, model.arguments(3))
    free = nested.graph.batch is not None
    check_training_step(net, nested, model.arguments(3) if free else inputs, notes)
    line = report.row(model, nested)
    if request.config.getoption("--update-golden"):
        report.update(model, line, ZOO, EVERYTHING)
    assert report.rows().get(model.name) == line, "docs/zoo.md: run make zoo ARGS=--update-golden"
    assert nested.graph.coverage.params >= 0.8 or model.low, "no reason is listed in the zoo"


@pytest.mark.parametrize("model", chosen(m for m in ZOO if m.not_captured))
@pytest.mark.filterwarnings("default")
def test_not_captured(model: ZooModel) -> None:
    """torch.export still refuses it, in the words that its row holds."""
    net, (args, kwargs) = model.make()
    with pytest.raises(nestify.CaptureError) as error:
        nestify.trace(net, args, kwargs)
    assert model.not_captured in str(error.value)


def test_the_zoo_is_wide() -> None:
    names = [model.name for model in ZOO]
    assert len(names) == len(set(names))
    assert sum(model.sample and not model.not_captured for model in ZOO) >= 25


def test_the_report_is_whole() -> None:
    lines = report.rows()
    assert report.FILE.read_text() == report.text(lines, ZOO, EVERYTHING)
    assert lines.keys() == {model.name for model in ZOO if not model.not_captured}
