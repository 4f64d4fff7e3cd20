from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from nestify.emit import ExportWarning, export, pt2
from nestify.errors import CaptureError, VerificationError
from tests.emit.nets import NETS, Fixed, build, nested_call


def load(path: Path) -> torch.nn.Module:
    # Our own fresh file; nestify itself never loads one, for loading runs what it holds.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.load(path).module()


@pytest.mark.parametrize("name", NETS)
def test_file_computes_what_the_model_computes(name: str, tmp_path: Path) -> None:
    model, (x,) = build(name)
    report = export(model, tmp_path / "net.pt2", example_inputs=(x,))
    assert report.error <= 1e-6
    assert report.free_batch
    more = torch.cat([x, x, x[:1]])
    assert torch.allclose(load(report.path)(more.clone()), model(more.clone()), atol=1e-6)


def test_nested_arguments(tmp_path: Path) -> None:
    model, arguments = nested_call()
    report = export(model, tmp_path / "net.pt2", **arguments)
    result = load(report.path)(*arguments["example_inputs"], **arguments["example_kwargs"])
    assert set(result) == {"logits", "aux"}


class Result(NamedTuple):
    """An output of the user's own kind."""

    logits: torch.Tensor


class Named(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> Result:
        return Result(x + 1)


def test_what_torch_cannot_save_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match=r"cannot save Named: .*namedtuple"):
        export(Named().eval(), tmp_path / "net.pt2", example_inputs=(torch.randn(2, 3),))
    assert list(tmp_path.iterdir()) == []


def test_metadata_is_stored_and_sources_and_data_are_not(tmp_path: Path) -> None:
    model, inputs = build("residual")
    inputs[0][:] = 0.123456789
    export(model, tmp_path / "n.pt2", example_inputs=inputs, metadata={"subnet": "{}"})
    with zipfile.ZipFile(tmp_path / "n.pt2") as file:
        entries = {name: file.read(name) for name in file.namelist()}
    assert any(name.endswith("nestify.subnet") and data == b"{}" for name, data in entries.items())
    needles = (str(Path(__file__).parent).encode(), bytes(inputs[0][:1, :1, :1].numpy().tobytes()))
    assert not [name for name, data in entries.items() if any(needle in data for needle in needles)]


def test_a_fixed_batch_is_said_so(tmp_path: Path) -> None:
    with pytest.warns(ExportWarning, match="the batch is fixed at 2"):
        export(Fixed().eval(), tmp_path / "n.pt2", example_inputs=(torch.randn(2, 2, 3),))


def test_a_program_that_differs_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pt2, "_run", lambda module, call: call.run(module) + 1)
    model, inputs = build("linear")
    with pytest.raises(VerificationError, match="the exported program differs"):
        export(model, tmp_path / "net.pt2", example_inputs=inputs)
    assert list(tmp_path.iterdir()) == []
