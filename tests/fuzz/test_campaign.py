"""The fuzzer itself: it finds planted faults, shrinks them, resumes, and its scripts run alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as pytree

import nestify
from nestify.errors import ArtifactError, VerificationError
from nestify.nested import model as nested
from nestify.rules import OPS
from tests.fuzz import __main__ as program
from tests.fuzz import campaign as campaigns
from tests.fuzz.build import build, example_inputs, model_of
from tests.fuzz.bundles import Network, in_onnxruntime
from tests.fuzz.campaign import campaign
from tests.fuzz.checks import TOLERANCE, check, check_model
from tests.fuzz.chunks import Settings, Tally, model_spec, run_chunk
from tests.fuzz.doubt import sensitivity_of_calls
from tests.fuzz.forms import RejectedError
from tests.fuzz.report import as_data, as_text
from tests.fuzz.shrink import shrink
from tests.fuzz.spec import Spec
from tests.fuzz.table import form_table
from tests.laws.test_faults import FAULTS

FORMS = form_table()


@pytest.mark.slow
@pytest.mark.parametrize("part", range(3))
def test_models_obey_the_laws(part: int, tmp_path: Path) -> None:
    """90 models of the campaign's seed, some of them in onnxruntime too."""
    settings = Settings(onnx_every=(2, 2, 0)[part], scripts=str(tmp_path))
    tally = run_chunk(settings, range(30 * part, 30 * part + 30))
    scripts = [Path(found.script).read_text() for found in tally.mismatches]
    assert not tally.mismatches, "\n\n".join(scripts)
    assert tally.outcomes["checked"] >= 21
    assert tally.outcomes["torch.export"] == 0
    assert len(tally.pairs) > 120
    assert part == 2 or tally.onnx["equal"] >= 7


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found_and_shrunk(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    op, rule = FAULTS[fault]
    monkeypatch.setitem(OPS, op, replace(OPS[op], rule=rule))
    settings = Settings(seed=1, focus=(op,))
    for index in range(60):
        spec, _ = model_spec(settings, index, FORMS)
        failure = check(spec, FORMS).failure
        if failure is not None:
            break
    else:
        pytest.fail(f"{fault}: nothing noticed")

    def breaks(candidate: Spec) -> bool:
        found = check(candidate, FORMS).failure
        return found is not None and found.law == failure.law

    small = shrink(spec, FORMS, breaks)
    assert breaks(small)
    assert len(small.steps) <= 5
    monkeypatch.undo()
    assert check(small, FORMS).failure is None, "the fault is the rule's, not the model's"


def test_a_mismatch_is_written_as_a_script_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script holds no fault of its own: with the rules as they are it ends well."""
    op, rule = FAULTS["split sizes not respelled"]
    monkeypatch.setitem(OPS, op, replace(OPS[op], rule=rule))
    settings = Settings(seed=1, focus=(op,), onnx_every=0, scripts=str(tmp_path))
    tally = run_chunk(settings, range(6))
    assert tally.mismatches
    data = as_data(settings, tally, 1.0, "code")
    assert "MISMATCH model" in as_text(data)
    assert json.loads(json.dumps(data))["mismatches"][0]["law"] == tally.mismatches[0].law
    script = Path(tally.mismatches[0].script)
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("checked; onnxruntime: equal")
    planted = script.with_name("planted.py")
    broken = "    rule = FAULTS['split sizes not respelled'][1]\n"
    broken += (
        "    OPS['split_with_sizes'] = replace(OPS['split_with_sizes'], rule=rule)\n    replay("
    )
    text = script.read_text().replace("    replay(", broken)
    imports = "import sys\nsys.path.insert(0, '.')\nfrom dataclasses import replace\n"
    imports += "from nestify.rules import OPS\nfrom tests.laws.test_faults import FAULTS\n"
    planted.write_text(imports + text)
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, planted], capture_output=True, text=True, check=False, cwd=root
    )
    assert done.returncode == 4, done.stderr
    assert "split_sizes" in done.stdout


class FirstOfEqual(nn.Module):
    """The place of the largest of numbers that are all one, but for rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.down(self.up(x))
        return F.cosine_similarity(y, y, -1).topk(1, -1).indices


@pytest.mark.parametrize("equal", [True, False])
def test_what_rounding_decides_is_no_mismatch(equal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where extraction refuses its own result; elsewhere that is one."""

    def refuses(*_: object) -> None:
        raise VerificationError("they differ", 0.75)

    monkeypatch.setattr(nested, "verify_extracted", refuses)
    torch.manual_seed(0)
    model = FirstOfEqual() if equal else nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4))
    inputs = torch.randn(2, 50, 6, dtype=torch.float64)
    case = check_model(model.double(), (inputs,), (inputs[:1],), seed=0)
    if equal:
        assert case.outcome == "rounding alone moves it more"
    else:
        assert case.failure is not None
        assert case.failure.error == 0.75


class LogOfSigmoid(nn.Module):
    """Tiny values of a sigmoid, which onnxruntime gives to 7e-8 of one, and their logarithm."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.up, self.down, self.shift = nn.Linear(6, 8), nn.Linear(8, 4), shift

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.log10(torch.sigmoid(self.down(self.up(x).tanh()) - self.shift))


@pytest.mark.parametrize(("shift", "outcome"), [(12.0, "rounding"), (0.0, "equal")])
def test_what_the_kernels_of_onnxruntime_cannot_tell_is_not_judged(
    shift: float, outcome: str
) -> None:
    torch.manual_seed(0)
    inputs = (torch.randn(4, 6, dtype=torch.float64),)
    nested = nestify.transform(LogOfSigmoid(shift).double(), "fn3-neuron", inputs)
    slim = nested.extract(nested.space.at(0.5))
    (verdict,) = in_onnxruntime([Network(slim, inputs)], set())
    assert verdict.outcome == outcome


def test_another_formula_is_no_rounding() -> None:
    """A well-behaved model hides no more than some rounding of each call."""
    torch.manual_seed(0)
    inputs = (torch.randn(4, 6),)
    nested = nestify.transform(LogOfSigmoid(0.0), "fn3-neuron", inputs)
    slim = nested.extract(nested.space.at(0.5))
    assert 1e-8 < sensitivity_of_calls(slim, inputs, 1e-7) < 1e-5


class CentredInTraining(nn.Module):
    """The mean of what a batch norm gives in training is zero, but for rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Parameter(torch.randn(7, 5)), nn.BatchNorm1d(5, affine=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.norm(self.table).mean()


class Odd(nn.Module):
    """The imaginary parts of a real signal's spectrum add up to zero, but for rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(4, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.fft.fft(self.table).imag.sum()


@pytest.mark.parametrize("kind", [CentredInTraining, Odd])
def test_what_is_nothing_but_rounding_is_not_judged(kind: type[nn.Module]) -> None:
    """In training alone, or where the whole model gives zero and a subnet something."""
    inputs, other = ((torch.zeros(n, 1, dtype=torch.float64),) for n in (2, 3))
    outcomes: set[str] = set()
    for seed in range(5):  # the rounding of some subnets happens to be the same
        torch.manual_seed(seed)
        case = check_model(kind().double(), inputs, other, seed=seed)
        assert case.failure is None
        outcomes.add(case.outcome)
    assert "rounding alone moves it more" in outcomes


class CertainDraw(nn.Module):
    """A probability of one, which none may exceed, beside what is zero but for rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.odd = Odd()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.odd(x), torch.bernoulli(torch.ones_like(x))


def test_a_model_at_the_edge_of_a_domain_is_judged() -> None:
    inputs, other = ((torch.zeros(n, 1, dtype=torch.float64),) for n in (2, 3))
    for seed in range(5):
        torch.manual_seed(seed)
        case = check_model(CertainDraw().double(), inputs, other, seed=seed)
        assert case.failure is None or case.failure.error > TOLERANCE


def test_shrinking_passes_over_what_is_refused_when_it_is_built_again() -> None:
    forms = form_table()
    spec, _ = model_spec(Settings(), 3, forms)

    def breaks(candidate: Spec) -> bool:
        raise RejectedError("drawn anew, it has values that are not finite")

    assert shrink(spec, forms, breaks, budget=3) == spec


def test_scripts_make_the_same_model() -> None:
    """What is checked is what the script holds: values do not depend on how a model was made."""
    for index in range(5):
        spec, _ = model_spec(Settings(), index, FORMS)
        builder = build(spec, FORMS)
        inputs = example_inputs(builder)
        with torch.no_grad():
            outputs = pytree.tree_leaves(model_of(builder, spec)(*inputs))
        for name, output in zip(spec.outputs, outputs, strict=True):
            assert torch.equal(builder.values[name].tensor, output)


def test_campaigns_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaigns, "CHUNK", 4)
    storage = tmp_path / "fuzz.jsonl"
    settings = Settings(onnx_every=0, scripts=str(tmp_path))
    first = campaign(settings, 4, storage=storage)
    with storage.open("a") as file:
        file.write('{"start": 4, "tal')  # killed while it wrote
    ran: list[range] = []

    def watched(chosen: Settings, indices: range) -> Tally:
        ran.append(indices)
        return run_chunk(chosen, indices)

    monkeypatch.setattr(campaigns, "run_chunk", watched)
    seen: list[int] = []
    second = campaign(settings, 8, storage=storage, progress=lambda done, _: seen.append(done))
    assert ran == [range(4, 8)]
    assert seen == [4, 8]
    assert (first.models, second.models) == (4, 8)
    assert second.pairs.keys() >= first.pairs.keys()
    again = campaign(settings, 8, storage=storage)
    assert again.to_dict() == second.to_dict()
    with pytest.raises(ArtifactError, match="other settings"):
        campaign(Settings(seed=1), 8, storage=storage)


def dies(settings: Settings, indices: range) -> Tally:
    if 80 in indices:
        os.abort()
    return Tally(models=len(indices))


def test_a_model_that_ends_its_process_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(campaigns, "run_chunk", dies)
    storage = tmp_path / "fuzz.jsonl"
    with pytest.raises(VerificationError, match=r"one of the models .*80 to 159"):
        campaign(Settings(), 400, jobs=1, storage=storage)
    lines = storage.read_text().splitlines()
    assert [json.loads(line).get("start") for line in lines] == [None, 0]


def test_workers_end_with_a_killed_campaign(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--models", "400", "--jobs", "2"]
    command += ["--scripts", str(tmp_path), "--onnx-every", "0"]
    children = Path("/proc/self/task")
    if not children.exists():
        pytest.skip("reads /proc")
    with subprocess.Popen(
        command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    ) as campaign:
        listed = Path(f"/proc/{campaign.pid}/task/{campaign.pid}/children")
        workers: list[str] = []
        deadline = time.monotonic() + 120
        while (
            len(workers) < 3 and time.monotonic() < deadline
        ):  # two, and multiprocessing's tracker
            time.sleep(0.5)
            workers = listed.read_text().split()
        campaign.kill()
    assert len(workers) >= 3
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline, "a worker lives on"
        time.sleep(0.5)


def test_command(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    import typer

    with pytest.raises(typer.Exit) as done:
        program.fuzz(
            only=3,
            jobs=1,
            models=1,
            seed=0,
            ops=None,
            onnx_every=0,
            subnets=1,
            storage=None,
            scripts=tmp_path,
            as_document=True,
        )
    assert done.value.exit_code == 0
    assert json.loads(capfd.readouterr().out)["models"] == 1
    with pytest.raises(typer.Exit) as done:
        program.fuzz(
            only=None,
            jobs=1,
            models=1,
            seed=0,
            ops=["nonsense"],
            onnx_every=0,
            subnets=1,
            storage=None,
            scripts=tmp_path,
            as_document=False,
        )
    assert done.value.exit_code == 2
    assert "no form calls the op 'nonsense'" in capfd.readouterr().err
