from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nestify.emit import ExportWarning, export
from nestify.emit.onnx import file as onnx_file
from nestify.emit.onnx import names as onnx_graph
from nestify.errors import CaptureError, VerificationError
from tests.emit.nets import NETS, Fixed, build, images, nested_call


def run(path: Path, feeds: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    results: Any = session.run(None, {name: value.numpy() for name, value in feeds.items()})
    return [torch.from_numpy(result) for result in results]


@pytest.mark.parametrize("name", NETS)
def test_file_computes_what_the_model_computes_at_other_batch_sizes(
    name: str, tmp_path: Path
) -> None:
    model, (x,) = build(name)
    report = export(model, tmp_path / "net.onnx", example_inputs=(x,))
    assert report.error <= 1e-5
    assert report.free_batch
    assert len(report.checked_batches) == 2
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]
    more = torch.cat([x, x, x[:1]])
    (result,) = run(report.path, {report.inputs[0]: more})
    expected = model(more.clone())
    assert (result - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_names_come_from_the_signature_the_keys_and_the_parameters(tmp_path: Path) -> None:
    model, arguments = nested_call()
    report = export(model, tmp_path / "net.onnx", **arguments)
    assert report.inputs == ("batch_left", "batch_right", "gain")
    assert report.outputs == ("logits", "aux_0", "aux_1")
    graph = onnx.load(report.path).graph
    assert [value.name for value in graph.input] == list(report.inputs)
    assert [value.name for value in graph.output] == list(report.outputs)
    assert {"fc.weight", "fc.bias"} <= {tensor.name for tensor in graph.initializer}
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_folded_norms_leave_a_bias_with_the_name_of_its_layer(tmp_path: Path) -> None:
    model, inputs = build("residual")
    report = export(model, tmp_path / "net.onnx", example_inputs=inputs)
    names = {tensor.name for tensor in onnx.load(report.path).graph.initializer}
    assert names == {"left.0.weight", "left.0.bias", "right.0.weight", "right.0.bias"}


def test_transposed_weights_are_named_after_their_weight(tmp_path: Path) -> None:
    model, inputs = build("attention")
    report = export(model, tmp_path / "net.onnx", example_inputs=inputs)
    weights = {t.name for t in onnx.load(report.path).graph.initializer if len(t.dims) == 2}
    assert weights == {"qkv.weight.T", "out.weight.T"}


def test_weights_of_one_row_or_column_are_named_too(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 1), nn.GELU(), nn.Linear(1, 6)).eval()
    report = export(model, tmp_path / "net.onnx", example_inputs=(torch.randn(2, 5, 6),))
    assert report.error <= 1e-5


@pytest.mark.parametrize("simplify", [True, False])
def test_no_source_paths_and_only_our_properties(simplify: bool, tmp_path: Path) -> None:
    path, metadata = tmp_path / "net.onnx", {"subnet": '{"a": 1}', "nestify.score": "0.9"}
    model, inputs = build("aten")
    report = export(model, path, example_inputs=inputs, metadata=metadata, simplify=simplify)
    data = path.read_bytes()
    assert report.simplified is simplify
    assert not any(word in data for word in (b".py", b"stack_trace", b"onnxsim", b"class_hier"))
    found = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
    assert found == {"nestify.subnet": '{"a": 1}', "nestify.score": "0.9"}


def test_two_exports_are_the_same_bytes(tmp_path: Path) -> None:
    model, inputs = build("shuffle")
    for name in ("a.onnx", "b.onnx"):
        export(model, tmp_path / name, example_inputs=inputs)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_outputs_that_are_inputs_constants_or_repeated(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            y = x + 1
            return [x, y, y, torch.ones(2) @ torch.ones(2, 2)]

    x = torch.randn(2, 3)
    report = export(Odd().eval(), tmp_path / "net.onnx", example_inputs=(x,))
    results = run(report.path, {"x": x})
    assert report.outputs == ("output_0", "output_1", "output_2", "output_3")
    assert all(torch.equal(a, b) for a, b in zip(results, Odd()(x), strict=True))


def test_an_unused_input_stays_an_input(tmp_path: Path) -> None:
    class Careless(nn.Module):
        def forward(self, x: torch.Tensor, spare: torch.Tensor, factor: int) -> torch.Tensor:
            return x * factor

    inputs = (torch.randn(2, 3), torch.randn(2, 3), 3)
    report = export(Careless().eval(), tmp_path / "net.onnx", example_inputs=inputs)
    assert report.inputs == ("x", "spare")


def test_a_batch_that_cannot_be_free_is_fixed_and_said_so(tmp_path: Path) -> None:
    model, inputs = Fixed().eval(), (torch.randn(2, 2, 3),)
    with pytest.warns(ExportWarning, match="the batch is fixed at 2: the model does not run at"):
        report = export(model, tmp_path / "net.onnx", example_inputs=inputs)
    assert not report.free_batch
    assert report.checked_batches == (2,)
    assert report.warnings
    shape = onnx.load(report.path).graph.input[0].type.tensor_type.shape
    assert shape.dim[0].dim_value == 2


def test_a_batch_that_the_exporter_fixes_is_said_so(tmp_path: Path) -> None:
    class Counting(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.zeros(1) if x.shape[0] < 4 else x * 2 - x

    with pytest.warns(ExportWarning, match="the batch is fixed at 1: .*batch"):
        report = export(Counting().eval(), tmp_path / "n.onnx", example_inputs=(torch.ones(1, 2),))
    assert report.checked_batches == (1,)


class Modulated(nn.Module):
    """A convolution with a group for each sample, as StyleGAN2's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.style = nn.Parameter(torch.randn(4, 3, 3, 3)), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        b, c, h, w = x.shape
        kernels = (self.weight[None] * self.style(z)[:, None, :, None, None]).reshape(-1, c, 3, 3)
        return F.conv2d(x.reshape(1, b * c, h, w), kernels, groups=b).reshape(b, 4, h - 2, w - 2)


def test_what_has_no_form_with_a_free_batch_is_written_with_a_fixed_one(tmp_path: Path) -> None:
    inputs = (torch.randn(2, 3, 6, 6), torch.randn(2, 5))
    with pytest.warns(ExportWarning, match="the batch is fixed at 2: cannot express the model"):
        report = export(Modulated().eval(), tmp_path / "net.onnx", example_inputs=inputs)
    assert (report.free_batch, report.checked_batches) == (False, (2,))


def test_a_symbol_that_gets_lost_in_translation_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "batch_is_free", lambda *_: False)
    model, inputs = build("linear")
    with pytest.warns(ExportWarning, match="the exporter made it a constant"):
        report = export(model, tmp_path / "net.onnx", example_inputs=inputs)
    assert onnx.load(report.path).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2


def test_a_fixed_batch_on_request_warns_of_nothing(tmp_path: Path) -> None:
    model, inputs = build("linear")
    report = export(model, tmp_path / "n.onnx", example_inputs=inputs, dynamic_batch=False)
    assert (report.free_batch, report.checked_batches, report.warnings) == (False, (2,), ())


def damaged(proto: onnx.ModelProto) -> onnx.ModelProto:
    other = onnx.ModelProto()
    other.CopyFrom(proto)
    for tensor in other.graph.initializer:
        tensor.raw_data = b"\x00" * len(tensor.raw_data)
    return other


def test_a_file_that_differs_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    translate = onnx_graph.translate
    monkeypatch.setattr(onnx_file, "translate", lambda *a: damaged(translate(*a)))
    model, inputs = build("residual")
    with pytest.raises(
        VerificationError, match="differs from the model on example inputs at batch"
    ):
        export(model, tmp_path / "net.onnx", example_inputs=inputs)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fault", ["differs", "raises"])
def test_a_bad_simplification_is_given_up(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def simplified(proto: onnx.ModelProto) -> onnx.ModelProto:
        if fault == "raises":
            raise RuntimeError("segment 7")
        return damaged(proto)

    monkeypatch.setattr(onnx_file, "_simplified", simplified)
    model, inputs = build("residual")
    with pytest.warns(ExportWarning, match="not simplified, onnxsim failed"):
        report = export(model, tmp_path / "net.onnx", example_inputs=inputs)
    assert not report.simplified
    assert report.error <= 1e-5


def test_large_weights_go_to_a_second_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "EXTERNAL_BYTES", 64)
    wide = nn.Sequential(nn.Linear(8, 64), nn.Linear(64, 2)).eval()
    report = export(wide, tmp_path / "net.onnx", example_inputs=images())
    assert [file.name for file in report.files] == ["net.onnx.data", "net.onnx"]
    assert report.error <= 1e-5
    assert not report.simplified


class TransposedTimesVector(nn.Module):
    """A learned vector picks from each map turned on its side."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.vector = nn.Linear(5, 4), nn.Parameter(torch.randn(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.fc(x)
        plain = y[0].T @ self.vector
        return (y.transpose(1, 2) @ self.vector).relu() + torch.mv(y[1].T, self.vector) + plain


@pytest.mark.parametrize("simplify", [True, False])
def test_a_matrix_on_its_side_times_a_vector(simplify: bool, tmp_path: Path) -> None:
    """In onnxruntime 1.32 the fusion of such a product forgets the transpose."""
    torch.manual_seed(0)
    model, x = TransposedTimesVector().eval(), torch.randn(2, 3, 5)
    report = export(model, tmp_path / "net.onnx", example_inputs=(x,), simplify=simplify)
    assert report.error <= 1e-5
    (result,) = run(report.path, {report.inputs[0]: x})
    assert torch.allclose(result, model(x), atol=1e-5)


def test_an_op_without_onnx_form_is_named(tmp_path: Path) -> None:
    class Strange(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.histc(x, 4).cumsum(0) + torch.special.bessel_j0(x).sum()

    with pytest.raises(CaptureError, match=r"cannot express the model in ONNX: .*histc|bessel"):
        export(Strange().eval(), tmp_path / "net.onnx", example_inputs=(torch.rand(2, 3),))
    assert list(tmp_path.iterdir()) == []


def test_double_precision_is_refused_with_a_remedy(tmp_path: Path) -> None:
    model, (x,) = build("depthwise")
    with pytest.raises(VerificationError, match=r"export model\.float\(\)"):
        export(model.double(), tmp_path / "net.onnx", example_inputs=(x.double(),))
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model, inputs = build("attention")
    export(model, tmp_path / "net.onnx", example_inputs=inputs)
    assert capfd.readouterr() == ("", "")
