"""Model references: what loads, and what is said when it does not."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from nestify.cli.model_reference import file_of, load_source, with_file
from nestify.errors import CaptureError, UsageError

NET = "import torch\nfrom torch import nn\nmodel = nn.Linear(3, 2)\n"


@pytest.fixture(autouse=True)
def clean_imports() -> Iterator[None]:
    before, path = set(sys.modules), list(sys.path)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if name.startswith(("nestify_source_", "userpkg")):
            del sys.modules[name]


def write(folder: Path, text: str, name: str = "net.py") -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def test_a_file_with_everything(tmp_path: Path) -> None:
    text = NET + (
        "example_inputs = lambda: (torch.ones(1, 3),)\n"
        "example_kwargs = {}\n"
        "calibration = [torch.ones(4, 3)]\n"
        "def evaluate(model): return 0.5\n"
    )
    source = load_source(write(tmp_path, text))
    assert isinstance(source.model, nn.Linear)
    assert source.example_inputs is not None
    assert torch.equal(source.example_inputs[0], torch.ones(1, 3))
    assert source.example_kwargs == {}
    assert source.evaluate is not None
    assert source.evaluate(source.model) == 0.5
    assert source.calibration is not None
    assert len(list(source.calibration)) == 1
    assert source.name == "net"


def test_a_file_that_is_scored_by_batches(tmp_path: Path) -> None:
    text = NET + (
        "batches = [torch.ones(4, 3), torch.zeros(2, 3)]\n"
        "def evaluate(model, batch, scale=2.0): return scale * batch[:, 0]\n"
    )
    source = load_source(write(tmp_path, text))
    assert source.evaluate is not None
    told = [source.evaluate(source.model, batch) for batch in source.batches() or ()]
    assert [part.tolist() for part in told] == [[2.0] * 4, [0.0] * 2]


def test_batches_of_something_else_are_left_alone(tmp_path: Path) -> None:
    text = NET + "batches = 12\ndef evaluate(model, batch=None): return 0.5\n"
    assert load_source(write(tmp_path, text)).batches() is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def evaluate(a, b, c): ...\n", r"of a model and a batch; it is evaluate\(a, b, c\)"),
        ("def evaluate(): ...\n", r"of a model and a batch; it is evaluate\(\)"),
        ("def evaluate(model, batch): ...\n", "each of `batches`, which is missing"),
        (
            "batches = 3\ndef evaluate(model, batch): ...\n",
            "batches must be an iterable of batches, not an int",
        ),
    ],
)
def test_only_who_scores_needs_batches(tmp_path: Path, text: str, message: str) -> None:
    source = load_source(write(tmp_path, NET + text))
    with pytest.raises(UsageError, match=message):
        source.batches()


@pytest.mark.parametrize(
    "batches",
    [
        "def calibration():\n    yield torch.ones(4, 3)\n    yield torch.zeros(4, 3)\n",
        "calibration = (torch.full((4, 3), float(i)) for i in (1, 0))\n",
        "calibration = iter([torch.ones(4, 3), torch.zeros(4, 3)])\n",
    ],
)
def test_calibration_that_can_be_read_once_is_there_for_every_reader(
    tmp_path: Path, batches: str
) -> None:
    source = load_source(write(tmp_path, NET + batches))
    assert source.calibration is not None
    for _ in range(2):
        assert [float(batch[0, 0]) for batch in source.calibration] == [1.0, 0.0]


def test_calibration_that_fails_names_its_file(tmp_path: Path) -> None:
    text = NET + "def calibration():\n    yield torch.ones(4, 3)\n    raise OSError('no disk')\n"
    with pytest.raises(CaptureError, match=r"net\.py: calibration failed: OSError: no disk"):
        load_source(write(tmp_path, text))


def test_a_file_with_only_a_model(tmp_path: Path) -> None:
    source = load_source(write(tmp_path, NET))
    assert (source.example_inputs, source.evaluate, source.calibration) == (None, None, None)


@pytest.mark.parametrize(
    "definition",
    [
        "def model(): return nn.Linear(3, 2)",
        "def model(width=2): return nn.Linear(3, width)",
        "class model(nn.Module):\n    pass",
        "model = nn.Identity",
    ],
)
def test_model_may_be_a_callable(tmp_path: Path, definition: str) -> None:
    text = f"from torch import nn\n{definition}\n"
    assert isinstance(load_source(write(tmp_path, text)).model, nn.Module)


def test_a_name_in_the_file(tmp_path: Path) -> None:
    reference = write(tmp_path, NET + "other = nn.Linear(7, 7)\n")
    model = load_source(f"{reference}:other").model
    assert isinstance(model, nn.Linear)
    assert model.in_features == 7


def test_the_file_may_import_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path, "WIDTH = 5\n", "userpkg_sizes.py")
    text = "from torch import nn\nfrom userpkg_sizes import WIDTH\nmodel = nn.Linear(WIDTH, 1)\n"
    model = load_source(write(tmp_path, text)).model
    assert isinstance(model, nn.Linear)
    assert model.in_features == 5


def test_random_weights_are_the_same_each_time(tmp_path: Path) -> None:
    reference = write(tmp_path, NET)
    state = torch.get_rng_state()
    first, second = load_source(reference).model, load_source(reference).model
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(torch.get_rng_state(), state), "loading must not disturb the generator"


def test_a_module_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "", "userpkg/__init__.py")
    write(tmp_path, NET, "userpkg/nets.py")
    monkeypatch.chdir(tmp_path)
    assert isinstance(load_source("userpkg.nets:model").model, nn.Linear)
    assert isinstance(load_source("torch.nn:Identity").model, nn.Identity)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", "defines no 'model'; define `model`, a torch.nn.Module or a function"),
        (NET.replace("model", "net"), "defines no 'model'; it has net: call one of them"),
        ("import torch\ndef build(): ...\n", "defines no 'model'; it has build:"),
        (NET + "evaluate = 3\n", "evaluate must be a function of a model, or .*, not an int"),
        (NET + "example_inputs = 'x'\n", "example_inputs must be a tuple.*not a str"),
        (NET + "example_kwargs = [1]\n", "example_kwargs must be a dict.*not a list"),
        (NET + "calibration = 3\n", "calibration must be an iterable.*not an int"),
    ],
)
def test_wrong_usage(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_source(write(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def model():\n    pass\n", r"model\(\) returned None, not.*net.py:1.*return the model"),
        ("def model():\n    return 3\n", r"model\(\) returned an int"),
        ("model = 3\n", "'model' is an int, not a torch.nn.Module"),
        ("def model(depth, width=1): ...\n", r"model\(depth\) needs arguments"),
        ("def model():\n    return 1 / 0\n", r"ZeroDivisionError.*net.py:2: return 1 / 0"),
        ("import torch\nraise ValueError('no data')\n", r"ValueError: no data \(net.py:2: raise"),
        ("def f(:\n", r"SyntaxError: invalid syntax \(net.py:1\)"),
        ("import sys\nsys.exit(3)\n", r"SystemExit: 3 \(net.py:2"),
        ("import userpkg_absent\n", "ModuleNotFoundError.*userpkg_absent"),
        (
            NET + "def example_inputs(): raise KeyError('a')\n",
            r"example_inputs\(\) failed: KeyError",
        ),
    ],
)
def test_models_that_cannot_be_had(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        load_source(write(tmp_path, text))


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("absent.py", "'absent.py' does not exist"),
        ("absent.py:net", "'absent.py' does not exist"),
        ("resnet", "'resnet' is no model reference; the forms are: model.py"),
        ("", "is no model reference"),
        ("timm:", "is no model reference"),
        ("userpkg_absent.nets:model", "module 'userpkg_absent.nets' does not exist"),
        ("torch.nn:Identty", "did you mean 'Identity'"),
        ("transformers:absent", "no configuration at 'absent'.*downloads nothing"),
    ],
)
def test_references_to_nothing(reference: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_source(reference)


def test_a_folder_is_no_model_file(tmp_path: Path) -> None:
    (tmp_path / "net.py").mkdir()
    with pytest.raises(UsageError, match="is a folder, not a file"):
        load_source(str(tmp_path / "net.py"))


def test_an_absent_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match=r"timm:resnet18 needs timm.*pip install timm"):
        load_source("timm:resnet18")


def test_a_library_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "raise RuntimeError('built for another torch')\n", "timm/__init__.py")
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(CaptureError, match=r"installed but cannot be imported.*another torch"):
        load_source("timm:resnet18")


def test_timm_models_have_no_weights_to_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_model(name: str, *, pretrained: bool) -> nn.Module:
        assert (name, pretrained) == ("resnet18", False)
        return nn.Identity()

    timm = ModuleType("timm")
    timm.__dict__.update(
        create_model=create_model,
        list_models=lambda: ["resnet18", "resnet50"],
        is_model=lambda name: name in ("resnet18", "resnet50"),
    )
    monkeypatch.setitem(sys.modules, "timm", timm)
    source = load_source("timm:resnet18")
    assert isinstance(source.model, nn.Identity)
    assert source.name == "resnet18"
    for name in ("resnet81", "hf-hub:someone/net"):
        with pytest.raises(UsageError, match=f"timm has no model '{name}'"):
            load_source(f"timm:{name}")


def test_torchvision_backbones_have_no_weights_to_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    def fcn(*, weights: object = None, weights_backbone: object = "DEFAULT") -> nn.Module:
        assert (weights, weights_backbone) == (None, None)
        return nn.Identity()

    models = ModuleType("torchvision.models")
    models.__dict__.update(list_models=lambda: ["fcn"], get_model_builder=lambda name: fcn)
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    assert isinstance(load_source("torchvision:fcn").model, nn.Identity)
    with pytest.raises(UsageError, match="torchvision has no model 'fnc'; did you mean fcn"):
        load_source("torchvision:fnc")


def test_transformers_models_come_from_a_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Tiny(nn.Module):
        def __init__(self, config: SimpleNamespace) -> None:
            super().__init__()
            self.config = config

    transformers = ModuleType("transformers")
    auto_config = SimpleNamespace(for_model=lambda **fields: SimpleNamespace(**fields))
    auto_model = SimpleNamespace(from_config=lambda config: nn.Identity())
    transformers.__dict__.update(AutoConfig=auto_config, AutoModel=auto_model, TinyModel=Tiny)
    monkeypatch.setitem(sys.modules, "transformers", transformers)
    config = {"model_type": "tiny", "hidden_size": 8, "architectures": ["TinyModel"]}
    write(tmp_path, json.dumps(config), "config.json")
    assert isinstance(load_source(f"transformers:{tmp_path}").model, Tiny)
    bare = write(tmp_path, json.dumps({"model_type": "tiny"}), "bare.json")
    assert isinstance(load_source(f"transformers:{bare}").model, nn.Identity)


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_broken_configuration_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match=r"is not JSON|no transformers configuration"):
        load_source(f"transformers:{write(tmp_path, text, 'config.json')}")


@pytest.mark.parametrize(
    ("reference", "file", "moved"),
    [
        ("a/net.py", "a/net.py", "b.py"),
        ("a/net.py:tiny", "a/net.py", "b.py:tiny"),
        ("transformers:conf", "conf", "transformers:b.py"),
        ("timm:resnet18", None, None),
        ("package.nets:tiny", None, None),
    ],
)
def test_the_file_of_a_reference(reference: str, file: str | None, moved: str | None) -> None:
    found = file_of(reference)
    assert found == (None if file is None else Path(file))
    if moved is not None:
        assert with_file(reference, Path("b.py")) == moved
