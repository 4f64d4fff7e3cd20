"""What the commands do when all is well: files, tables, and one JSON document."""

from __future__ import annotations

import json
from pathlib import Path

import onnxruntime
import pytest
import torch

import nestify
from nestify.explore.plan import Plan
from tests.cli.conftest import MODEL, Run, nestify_after
from tests.forks import Result


def test_plan_writes_both_files_and_one_document(planned: tuple[Path, Result]) -> None:
    folder, result = planned
    assert result.code == 0, result.stderr
    document = json.loads(result.stdout)
    assert (document["command"], document["version"]) == ("plan", 1)
    assert document["scoring"] == "fidelity"
    assert document["constraints"] == {"macs": 700.0}
    assert document["plan"] == "results/tiny/plan.json"
    assert document["onnx"]["path"] == "results/tiny/slim.onnx"
    assert document["onnx"]["error"] <= document["onnx"]["tolerance"] == 1e-5
    names = {p.name for p in (folder / "results/tiny").iterdir()}
    assert names == {"plan.json", "slim.onnx", "search.db"}
    assert document["chosen"]["costs"]["cpu"]["macs"] <= 700
    assert document["chosen"]["costs"]["cpu"]["latency_ms"] > 0
    assert document["full"]["costs"]["cpu"]["macs"] == 6 * 32 + 32 * 24 + 24 * 4
    assert len(document["front"]) >= 3
    assert "a model file may print" in result.stderr


def test_nothing_that_a_model_file_starts_writes_into_the_document(run: Run, folder: Path) -> None:
    text = "import os, sys\nos.system('echo of a child')\nos.write(1, b'of a library\\n')\n"
    text += "print('of the real stdout', file=sys.__stdout__)\n"
    (folder / "model.py").write_text(MODEL + text)
    result = run("inspect", "model.py", "--json")
    assert json.loads(result.stdout)["command"] == "inspect", result.stdout
    for writer in ("a child", "a library", "the real stdout"):
        assert f"of {writer}\n" in result.stderr


def test_the_plan_file_is_what_was_said(planned: tuple[Path, Result]) -> None:
    folder, result = planned
    document = json.loads(result.stdout)
    plan = Plan.load(folder / "results/tiny/plan.json")
    assert plan.model == "../../model.py"
    assert len(plan.points) == document["points"] <= 24
    best = plan.best(macs=700)
    assert dict(best.subnet.items()) == document["chosen"]["subnet"]


def test_the_onnx_file_is_the_chosen_subnet(planned: tuple[Path, Result]) -> None:
    folder, result = planned
    chosen = json.loads(result.stdout)["chosen"]["subnet"]
    session = onnxruntime.InferenceSession(folder / "results/tiny/slim.onnx")
    scope: dict[str, torch.nn.Module] = {}
    exec(MODEL, scope)
    x = torch.randn(5, 6)
    nested = nestify.transform(scope["model"], "fn3-neuron", example_inputs=(x,)).eval()
    with nested.activate(nestify.Subnet(chosen)), torch.no_grad():
        expected = nested(x)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-5, atol=1e-6)
    said = session.get_modelmeta().custom_metadata_map
    assert json.loads(said["nestify.subnet"]) == chosen


def test_refit_exports_what_is_nearer_to_the_whole_network(run: Run, folder: Path) -> None:
    (folder / "model.py").write_text(MODEL + "calibration = torch.randn(400, 6).split(50)\n")
    scope: dict[str, torch.nn.Module] = {}
    exec(MODEL, scope)
    torch.manual_seed(1)
    x = torch.randn(100, 6)
    expected = scope["model"](x).detach()
    bound = ("--constraint", "macs=700")
    commands: dict[str, tuple[str, ...]] = {
        "here/slim.onnx": ("plan", "model.py", "--out", "here", "--evaluations", "4"),
        "slim.onnx": ("export", "here/plan.json", "--out", "slim.onnx", "--refit"),
        "there/slim.onnx": ("plan", "model.py", "--out", "there", "--evaluations", "4", "--refit"),
    }
    missed: list[float] = []
    for name, command in commands.items():
        result = run(*command, *bound)
        assert result.code == 0, result.stderr
        session = onnxruntime.InferenceSession(folder / name)
        said = session.get_modelmeta().custom_metadata_map
        assert said["nestify.refit"] == str("--refit" in command).lower()
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        missed.append(float((torch.from_numpy(found) - expected).norm()))
    plain, *refitted = missed
    assert refitted[0] == pytest.approx(refitted[1])
    assert refitted[0] < 0.8 * plain


def test_plan_shows_a_table(run: Run, folder: Path) -> None:
    result = run("plan", "model.py", "--evaluations", "6")
    assert result.code == 0, result.stderr
    assert (folder / "model-plan/plan.json").is_file()
    lines = result.stdout.splitlines()
    assert lines[0].startswith("Pareto front of score and macs on cpu: ")
    assert lines[1].startswith("score: fidelity to the full model, 1 / (1 + relative distance")
    assert lines[3].split() == "size score MACs params latency ms units at".split()
    starred = [line for line in lines if line.startswith("*")]
    assert len(starred) == 2, "the exported row, and what the star means"
    assert "100%" in "".join(lines)
    assert "equal to torch in onnxruntime" in result.stdout
    assert "loading model.py" in result.stderr


def test_plan_of_workers_takes_what_the_file_defines(run: Run, folder: Path) -> None:
    text = MODEL + (
        "class Own(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.body = body\n"
        "    def forward(self, x):\n"
        "        return self.body(x)\n"
        "body, model = model, None\n"
        "model = Own()\n"
        "def evaluate(net):\n"
        "    return float(sum(net.active.values()))\n"
    )
    (folder / "model.py").write_text(text)
    result = run("plan", "model.py", "--evaluations", "4", "--workers", "2", "--json")
    assert result.code == 0, result.stderr
    assert json.loads(result.stdout)["full"]["score"] == 32 + 24


def test_plan_uses_the_evaluate_of_the_file(run: Run, folder: Path) -> None:
    text = MODEL + (
        "def evaluate(net):\n"
        "    print('noise on stdout')\n"
        "    return float(net(example_inputs[0]).shape[0])\n"
    )
    (folder / "model.py").write_text(text)
    out = ("--json", "--evaluations", "3", "--out", ".", "--method", "uniform")
    result = run("plan", "model.py", *out)
    assert result.code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["scoring"] == "evaluate"
    assert document["full"]["score"] == 8.0
    assert (folder / "slim.onnx").is_file(), "an existing folder is written into"
    assert (folder / "model.py").read_text() == text


def test_plan_scores_the_batches_of_the_file(run: Run, folder: Path) -> None:
    text = MODEL + (
        "torch.manual_seed(0)\n"
        "def batches():\n"
        "    for rows in (2, 3):\n"
        "        yield torch.randn(rows, *example_inputs[0].shape[1:])\n"
        "def evaluate(net, batch):\n"
        "    return torch.full((len(batch),), float(len(batch)))\n"
    )
    (folder / "model.py").write_text(text)
    result = run("plan", "model.py", "--evaluations", "4", "--json")
    assert result.code == 0, result.stderr
    assert json.loads(result.stdout)["full"]["score"] == (2 * 2 + 3 * 3) / 5


def test_export_from_another_folder(planned: tuple[Path, Result], run: Run, folder: Path) -> None:
    plan = planned[0] / "results/tiny/plan.json"
    result = run("export", plan, "--constraint", "params=600", "--out", "slim.onnx", "--json")
    assert result.code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["weights_as_planned"] is True
    assert document["chosen"]["costs"]["cpu"]["params"] <= 600
    assert document["export"]["error"] <= 1e-5
    assert (folder / "slim.onnx").is_file()


def test_export_warns_of_other_weights(
    planned: tuple[Path, Result], run: Run, folder: Path
) -> None:
    (folder / "model.py").write_text(MODEL.replace("manual_seed(3)", "manual_seed(4)"))
    plan = planned[0] / "results/tiny/plan.json"
    result = run("export", plan, "--model", "model.py", "--out", "slim/")
    assert result.code == 0, result.stderr
    assert "warning: the weights of model.py are not those that were planned" in result.stderr
    assert "best score at no more than half of the MACs" in result.stdout
    assert (folder / "slim/model.py").is_file()


def test_inspect_shows_dims_blocks_and_reasons(run: Run) -> None:
    result = run("inspect", "model.py")
    assert result.code == 0, result.stderr
    assert "elastic dims: 2, in 99.6% of the parameters and 100.0% of the MACs" in result.stdout
    assert "0.weight:0, 0.bias:0, 2.weight:1" in result.stdout
    assert "is a dim of the model's input" in result.stdout
    assert "droppable blocks: 0" in result.stdout


def test_inspect_as_json(run: Run) -> None:
    document = json.loads(run("inspect", "model.py", "--json").stdout)
    assert (document["command"], document["version"]) == ("inspect", 1)
    assert document["coverage"]["macs"] == 1.0
    assert 0.99 < document["coverage"]["params"] < 1.0, "only the output bias is fixed"
    group = document["groups"][0]
    assert (group["kind"], group["size"]) == ("neuron", 32)
    assert ["0.weight", 0] in group["sites"]
    assert {dim["size"] for dim in document["fixed"]} == {6, 4}
    assert all(dim["reason"] for dim in document["fixed"])
    assert document["blocks"] == []


def test_verify_compares_three_forms(run: Run) -> None:
    document = json.loads(run("verify", "model.py", "--subnets", "1", "--json").stdout)
    assert (document["command"], document["version"]) == ("verify", 1)
    largest, drawn = document["subnets"]
    assert (largest["name"], largest["original"], largest["macs_share"]) == ("largest", 0.0, 1.0)
    assert drawn["original"] is None
    assert drawn["macs_share"] < 1
    assert max(drawn["extracted"], drawn["onnxruntime"]) <= document["tolerance"] == 1e-5


def test_verify_in_float64_leaves_onnxruntime_out(run: Run, folder: Path) -> None:
    (folder / "model.py").write_text(
        MODEL + "model = model.double()\nexample_inputs = (example_inputs[0].double(),)\n"
    )
    result = run("verify", "model.py", "--subnets", "2")
    assert result.code == 0, result.stderr
    assert "allowed is 1e-10" in result.stdout


def test_verify_knows_the_fast_path_of_attention(run: Run, folder: Path) -> None:
    (folder / "encoder.py").write_text(
        "import torch\nfrom torch import nn\n"
        "layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)\n"
        "encoder = nn.TransformerEncoder(layer, 2)\n"
        "model = nn.Sequential(nn.Linear(6, 16), encoder, nn.Linear(16, 3))\n"
        "example_inputs = torch.randn(3, 7, 6)\n"
    )
    result = run("verify", "encoder.py", "--subnets", "1")
    assert result.code == 0, result.stderr


def test_verify_fails_where_the_forms_differ(folder: Path) -> None:
    change = (
        "from nestify.nested.model import NestedModel\n"
        "right = NestedModel.extract\n"
        "def wrong(self, subnet, **options):\n"
        "    slim = right(self, subnet, **options)\n"
        "    next(slim.parameters()).data.mul_(1.01)\n"
        "    return slim\n"
        "NestedModel.extract = wrong\n"
    )
    result = nestify_after(folder, change, "verify", "model.py", "--subnets", "1", "--json")
    assert result.code == 4, result.stderr
    assert "subnet 'largest': the extracted model differs from the nested" in result.error
