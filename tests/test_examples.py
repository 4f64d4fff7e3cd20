"""The examples are the networks their lessons say: parameters, multiply-adds, shapes."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

EXAMPLES = Path(__file__).parent.parent / "examples"
IMAGE_MODELS = {  # name: parameters, multiply-adds at 224 x 224 without bias and norms
    "mobilenet_v2": (3_504_872, 300_774_272),
    "resnet50": (25_557_032, 4_089_184_256),
    "vit": (86_567_656, None),  # torch's counter sees no attention on a CPU
}


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_image_model_is_the_published_network(name: str) -> None:
    example = load(name)
    parameters, macs = IMAGE_MODELS[name]
    with torch.device("meta"):
        model = example.model().eval()
    assert sum(p.numel() for p in model.parameters()) == parameters
    with FlopCounterMode(display=False) as counter:
        assert model(torch.empty(1, 3, 224, 224, device="meta")).shape == (1, 1000)
    if macs is not None:
        assert counter.get_total_flops() == 2 * macs


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_image_model_runs_on_its_inputs_and_tells_them_apart(name: str) -> None:
    example = load(name)
    with torch.no_grad():
        outputs = example.model().eval()(*example.example_inputs())
    assert outputs.shape == (2, 1000)
    assert outputs.isfinite().all()
    assert (outputs[0] - outputs[1]).std() > 1e-2


@pytest.mark.parametrize("name", ["mobilenet_v2", "mlp"])
def test_model_is_the_same_at_each_call(name: str) -> None:
    example = load(name)
    first, second = example.model().state_dict(), example.model().state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_mlp_has_learned_its_task() -> None:
    example = load("mlp")
    model = example.model()
    assert [tuple(p.shape) for p in model.parameters() if p.dim() == 2] == [
        (512, 784),
        (128, 512),
        (10, 128),
    ]
    assert example.evaluate(model) > 0.8
    untrained = torch.nn.Linear(784, 10)
    assert example.evaluate(untrained) < 0.3
    assert all(model(batch).shape == (128, 10) for batch in example.calibration)
    assert model(*example.example_inputs).shape == (16, 10)


LESSONS = [path for path in sorted(EXAMPLES.glob("*.py")) if path.stem != "reproduce_fn3"]


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_example_is_a_lesson_in_plain_torch(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    example = load(path.stem)
    assert f"examples/{path.name}" in (example.__doc__ or ""), "the lesson shows the command to run"
    assert hasattr(example, "model")
    assert hasattr(example, "example_inputs")
    assert not re.search(r"^\s*(import|from) nestify", text, re.MULTILINE)
