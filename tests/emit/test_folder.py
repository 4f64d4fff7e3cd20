from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import fx, nn

from nestify.emit import ExportWarning, export
from nestify.emit.source import folder
from nestify.errors import UsageError, VerificationError
from tests.emit.nets import NETS, Fixed, aten_graph, build, images, nested_call

# Only torch may be found: nestify, safetensors and NumPy are made impossible to import.
LONELY = """
import sys
for name in ("nestify", "safetensors", "onnx"):
    sys.modules[name] = None
sys.path.insert(0, sys.argv[1])
import torch
from model import load
model = load()
torch.save([model(*torch.load(sys.argv[2])), sorted(model.state_dict())], sys.argv[3])
"""


def load(path: Path) -> Any:
    namespace: dict[str, Any] = {"__name__": "model", "__file__": str(path / "model.py")}
    exec((path / "model.py").read_text(), namespace)
    return namespace["load"]()


@pytest.mark.parametrize("name", NETS)
def test_source_computes_exactly_what_the_model_computes(name: str, tmp_path: Path) -> None:
    model, (x,) = build(name)
    report = export(model, tmp_path / "net", example_inputs=(x,))
    assert report.error == 0.0
    assert [file.name for file in report.files] == ["README.md", "model.py", "weights.safetensors"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["net"]
    more = torch.cat([x, x, x[:1]])
    assert torch.equal(load(report.path)(more.clone()), model(more.clone()))


@pytest.mark.parametrize("name", ["residual", "depthwise", "conv3d", "shuffle", "tied", "aten"])
def test_state_dict_is_the_one_of_the_model(name: str, tmp_path: Path) -> None:
    model, inputs = build(name)
    export(model, tmp_path / "net", example_inputs=inputs)
    ours, theirs = load(tmp_path / "net").state_dict(), model.state_dict()
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_torch_alone_is_enough(tmp_path: Path) -> None:
    model, inputs = build("aten")
    export(model, tmp_path / "net", example_inputs=inputs)
    torch.save(inputs, tmp_path / "in.pt")
    places = [str(tmp_path / name) for name in ("net", "in.pt", "out.pt")]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, "-I", "-W", "ignore", "-c", LONELY, *places],
        check=True, cwd=tmp_path, env=environment,
    )  # fmt: skip
    result, names = torch.load(tmp_path / "out.pt")
    assert torch.equal(result, model(*inputs))
    assert names == sorted(model.state_dict())


def test_source_reads_like_a_person_s(tmp_path: Path) -> None:
    model, inputs = build("aten")
    export(model, tmp_path / "net", example_inputs=inputs)
    source = (tmp_path / "net/model.py").read_text()
    body = source[source.index("    def __init__(self) -> None:") : source.index("def load")]
    assert body.strip() == EXPECTED.strip()


EXPECTED = """
    def __init__(self) -> None:
        super().__init__()
        self.layer1 = Group(**{"0": nn.Conv2d(3, 6, 3, padding=1), "2": nn.BatchNorm2d(6)})
        self.fc = nn.Linear(24, 5)
        self.shift = nn.Parameter(torch.empty((6, 1, 1)))

    def forward(self, x: torch.Tensor):
        x1 = self.layer1["0"](x)
        x1 = self.layer1["2"](x1)
        x1 = x1.relu_()
        x1 = x1 + self.shift
        x1 = F.adaptive_avg_pool2d(x1, [4, 2])
        x2 = x1[:, :3]
        x1 = x1[:, 3:]
        x1 = -x1
        x2 = x2 * x1
        size = x.shape[0]
        x2 = x2.view([size, -1])
        x2 = self.fc(x2)
        return x2
"""


def test_a_tied_weight_is_stored_once_and_tied_again(tmp_path: Path) -> None:
    model, inputs = build("tied")
    export(model, tmp_path / "net", example_inputs=inputs)
    with safe_open(tmp_path / "net/weights.safetensors", "pt") as file:
        assert list(file.keys()) == ["embed.weight"]
    loaded = load(tmp_path / "net")
    assert loaded.head.weight is loaded.embed.weight


def test_nested_inputs_and_outputs(tmp_path: Path) -> None:
    model, arguments = nested_call()
    export(model, tmp_path / "net", **arguments)
    result = load(tmp_path / "net")(*arguments["example_inputs"], **arguments["example_kwargs"])
    expected = model(*arguments["example_inputs"], **arguments["example_kwargs"])
    assert torch.equal(result["aux"][1], expected["aux"][1])
    source = (tmp_path / "net/model.py").read_text()
    assert 'left = batch["left"]' in source
    assert 'return {"logits": ' in source


def test_any_module_is_written_through_torch_export(tmp_path: Path) -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    report = export(model, tmp_path / "net", example_inputs=(torch.randn(2, 3, 8),))
    assert report.error <= 1e-6  # its fast path is one fused kernel


class Block(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            return x + 1


def test_a_block_of_code_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is the code of a block"):
        export(Block().eval(), tmp_path / "net", example_inputs=(torch.randn(2, 3),))


def test_weights_in_other_strides_and_types(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval().double()
    model = model.to(memory_format=torch.channels_last)
    (x,) = images()
    export(fx.symbolic_trace(model), tmp_path / "net", example_inputs=(x.double(),))
    loaded = load(tmp_path / "net")
    assert loaded(x.double()).dtype is torch.float64
    assert "dtype=torch.float64" in (tmp_path / "net/model.py").read_text()


def test_hooks_are_not_lost_in_silence(tmp_path: Path) -> None:
    model = aten_graph().eval()
    model.fc.register_forward_hook(lambda module, args, output: output + 1)
    export(model, tmp_path / "net", example_inputs=images())
    (x,) = images()
    assert torch.equal(load(tmp_path / "net")(x), model(x))


def test_card_and_header_carry_the_metadata(tmp_path: Path) -> None:
    model, inputs = build("linear")
    metadata = {"subnet": '{"a": 1}', "note": "one | two\n# three"}
    export(model, tmp_path / "net", example_inputs=inputs, metadata=metadata)
    card = (tmp_path / "net/README.md").read_text()
    assert card.startswith('---\nlibrary_name: "pytorch"\n')
    assert "| note | one \\| two \\# three |" in card
    with safe_open(tmp_path / "net/weights.safetensors", "pt") as file:
        assert json.loads(file.metadata()["nestify.subnet"]) == {"a": 1}


def test_a_fixed_batch_is_said_so(tmp_path: Path) -> None:
    with pytest.warns(ExportWarning, match="the batch is fixed at 2"):
        export(Fixed().eval(), tmp_path / "net", example_inputs=(torch.randn(2, 2, 3),))


def test_readable_ops_that_differ_are_spelled_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nestify.emit.source import op_source as spellings

    monkeypatch.setitem(spellings._INFIX, "add.Tensor", "-")
    model, inputs = build("aten")
    export(model, tmp_path / "net", example_inputs=inputs)
    assert "torch.ops.aten.add.Tensor(" in (tmp_path / "net/model.py").read_text()


def test_source_that_differs_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = folder.write_safetensors

    def damaged(path: Path, state: Any, metadata: Any) -> None:
        next(iter(state.tensors.values())).data.add_(1)
        write(path, state, metadata)

    monkeypatch.setattr(folder, "write_safetensors", damaged)
    model, inputs = build("linear")
    with pytest.raises(VerificationError, match=r"model\.py differs"):
        export(model, tmp_path / "net", example_inputs=inputs)
    assert list(tmp_path.iterdir()) == []


def test_an_op_of_another_package_is_refused(tmp_path: Path) -> None:
    with torch.library._scoped_library("nestify_test", "DEF") as library:
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: x * 2, "CompositeExplicitAutograd")
        graph = fx.Graph()
        x = graph.placeholder("x")
        graph.output(graph.call_function(torch.ops.nestify_test.twice.default, (x,)))
        model = fx.GraphModule(nn.Module(), graph).eval()
        with pytest.raises(
            UsageError, match=r"nestify_test.twice.default of node 'twice.*not a part"
        ):
            export(model, tmp_path / "net", example_inputs=images())
    assert list(tmp_path.iterdir()) == []


def test_a_second_export_replaces_the_first_and_nothing_else(tmp_path: Path) -> None:
    model, inputs = build("linear")
    (tmp_path / "net").mkdir()
    export(model, tmp_path / "net", example_inputs=inputs)
    export(model, tmp_path / "net", example_inputs=inputs, metadata={"round": "two"})
    assert "round" in (tmp_path / "net/README.md").read_text()
    assert [entry.name for entry in tmp_path.iterdir()] == ["net"]
    (tmp_path / "net/thesis.tex").write_text("ten years of work")
    with pytest.raises(UsageError, match=r"holds thesis\.tex"):
        export(model, tmp_path / "net", example_inputs=inputs)
    assert (tmp_path / "net/thesis.tex").read_text() == "ten years of work"
