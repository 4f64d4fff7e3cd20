from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import nestify
from nestify.emit import ExportWarning, export
from nestify.emit.entry import kind_of
from nestify.errors import CaptureError, UsageError
from nestify.support import atomic_files as atomic
from tests.emit.nets import build, images


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("a.onnx", "onnx"),
        ("A.ONNX", "onnx"),
        ("a.pt2", "pt2"),
        ("a", "folder"),
        ("a.v2/", "folder"),
    ],
)
def test_kind_by_name(path: str, kind: str) -> None:
    assert kind_of(path) == kind


def test_kind_of_a_folder_that_exists(tmp_path: Path) -> None:
    (tmp_path / "net.v2").mkdir()
    assert kind_of(tmp_path / "net.v2") == "folder"
    (tmp_path / "net.onnx").mkdir()
    with pytest.raises(UsageError, match="a folder of that name exists"):
        kind_of(tmp_path / "net.onnx")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "net.pth"}, r"ends in \.onnx or \.pt2"),
        ({"path": "no/such/net.onnx"}, "create it first"),
        ({"example_inputs": torch.zeros(2)}, r"write example_inputs=\(x,\)"),
        ({"example_inputs": (3,)}, "holds no tensor"),
        ({"metadata": {"score": 0.5}}, "'score': 0.5"),
        ({"tolerance": 0.0}, "must be positive, not 0.0"),
        ({"model": nn.Sequential(nn.Dropout()).train()}, r"Sequential.*call model\.eval"),
        ({"model": nn.Linear(8, 2, device="meta").eval()}, "'weight': it is on the meta device"),
    ],
)
def test_wrong_arguments_get_one_clear_message(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model, inputs = build("linear")
    arguments: dict[str, Any] = {"model": model, "path": "net.onnx", "example_inputs": inputs}
    arguments |= change
    arguments["path"] = tmp_path / arguments["path"]
    with pytest.raises(UsageError, match=message):
        export(**arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "path", [None, 3, b"net.onnx", "n\0t.onnx", "net\ud800.onnx", "é" * 126 + ".onnx"]
)
def test_what_is_no_path_is_wrong_usage(path: Any) -> None:
    model, inputs = build("linear")
    with pytest.raises(UsageError, match=r"path of the export must be a path, as text .* got "):
        export(model, path, example_inputs=inputs)


@pytest.mark.parametrize("name", ["net.onnx", "net.pt2", "net"])
def test_a_failure_in_the_middle_leaves_what_was_there(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    model, inputs = build("linear")
    export(model, tmp_path / name, example_inputs=inputs)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    monkeypatch.setattr(atomic, "_sync", full)
    with pytest.raises(OSError, match="No space left"):
        export(model, tmp_path / name, example_inputs=inputs, metadata={"other": "bytes"})
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["net.onnx", "net.pt2", "net"])
def test_a_model_that_cannot_be_captured_says_so(name: str, tmp_path: Path) -> None:
    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(CaptureError, match=r"torch\.export cannot capture Branching"):
        export(Branching().eval(), tmp_path / name, example_inputs=images())
    assert list(tmp_path.iterdir()) == []


def test_the_warning_points_at_the_caller(tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.view(2, 3)

    with pytest.warns(ExportWarning) as caught:
        export(Two().eval(), tmp_path / "net.pt2", example_inputs=(torch.ones(2, 3),))
    assert [Path(one.filename).name for one in caught] == ["test_entry.py"]


def test_inputs_and_model_are_left_alone(tmp_path: Path) -> None:
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(8, 2)).eval()
    (x,) = images()
    before = x.clone()
    state = torch.random.get_rng_state()
    export(model, tmp_path / "net", example_inputs=(x,))
    assert torch.equal(x, before)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_nested_model_is_refused(tmp_path: Path) -> None:
    x = torch.randn(2, 3)
    nested = nestify.transform(
        nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), "fn3-neuron", (x,)
    ).eval()
    with pytest.raises(UsageError, match=r"export nested\.extract\(subnet\)"):
        export(nested, tmp_path / "net.onnx", example_inputs=(x,))
    export(nested.extract(nested.active), tmp_path / "net.onnx", example_inputs=(x,))


@pytest.mark.parametrize("suffix", ["", ".onnx", ".pt2"])
def test_the_longest_names_are_written(suffix: str, tmp_path: Path) -> None:
    model, inputs = build("linear")
    name = "é" * 120 + suffix
    export(model, tmp_path / name, example_inputs=inputs)
    export(model, tmp_path / name, example_inputs=inputs)
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


class Output(OrderedDict[str, torch.Tensor]):
    """As diffusers has them: registered with torch, without names for its parts."""


pytree.register_pytree_node(
    Output,
    lambda output: (list(output.values()), list(output)),
    lambda values, names: Output(zip(names, values, strict=True)),
    serialized_type_name="tests.emit.Output",
)


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> Output:
        return Output(sample=self.layer(x), skip=x)


@pytest.mark.parametrize("name", ["net.onnx", "net.pt2", "net/"])
def test_containers_that_torch_has_no_keys_for(name: str, tmp_path: Path) -> None:
    before = pytree.SUPPORTED_NODES[Output]
    inputs = (torch.randn(2, 3),)
    report = export(Named().eval(), f"{tmp_path}/{name}", example_inputs=inputs)
    assert report.outputs == ("sample", "skip")
    assert report.free_batch
    assert pytree.SUPPORTED_NODES[Output] is before, "the registry is left as it was found"
