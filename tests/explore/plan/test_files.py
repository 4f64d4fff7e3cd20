"""Files of plans: what is saved is loaded, and read with suspicion."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from nestify.errors import ArtifactError, UsageError
from nestify.explore.plan import Plan
from tests.explore.plan.samples import plans, small_plan


@given(plan=plans())
def test_save_and_load_give_the_same_plan(plan: Plan, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    plan.save(path)
    assert Plan.load(path) == plan
    assert [p.name for p in path.parent.iterdir()] == ["plan.json"], "no temporary file is left"


def test_the_file_is_one_line_a_point(tmp_path: Path) -> None:
    small_plan().save(tmp_path / "plan.json")
    lines = (tmp_path / "plan.json").read_text().splitlines()
    assert sum('"score"' in line for line in lines) == 4
    assert json.loads("\n".join(lines))["version"] == 2


def test_a_save_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    small_plan().save(path)
    before = path.read_text()
    with pytest.raises(TypeError):
        small_plan(recipe=object()).save(path)
    assert path.read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


def test_saving_nowhere_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no folder"):
        small_plan().save(tmp_path / "absent" / "plan.json")


def test_saving_over_a_folder_is_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "plan.json").mkdir()
    with pytest.raises(UsageError, match=r"plan\.json: a folder of that name exists"):
        small_plan().save(tmp_path / "plan.json")
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"], "no temporary file is left"


@pytest.mark.parametrize("path", [".", "..", "", "/"])
def test_a_place_without_a_name_is_wrong_usage(path: str) -> None:
    with pytest.raises(UsageError, match="it is a folder; name a file to put there"):
        small_plan().save(path)


def test_loading_nothing_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        Plan.load(tmp_path / "plan.json")
    with pytest.raises(UsageError, match="is not a file"):
        Plan.load(tmp_path)


@pytest.mark.parametrize(
    "path", [None, 3, b"plan.json", "pl\0an.json", "plan\ud800.json", "p" * 256, "a/" * 3000]
)
def test_what_is_no_path_is_wrong_usage(path: Any) -> None:
    for use in (Plan.load, small_plan().save):
        with pytest.raises(UsageError, match=r"path of the plan must be a path, as text .* got "):
            use(path)


def changed(change: Callable[[dict[str, Any]], None]) -> str:
    document = json.loads(small_plan().to_json())
    change(document)
    return json.dumps(document)


def setter(*path: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: Any) -> None:
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = to

    return change


POINT = ("points", 0)
COST = (*POINT, "costs", "cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (setter("version", to=1), "its version is 1, this nestify reads 2"),
        (setter("format", to="other"), "not a nestify plan"),
        (setter("more", to=1), "unknown field 'more'"),
        (setter("seed", to=-1), "seed must be between 0"),
        (setter("seed", to=2**63), "seed must be between 0"),
        (setter("seed", to=True), "seed must be an integer, not True"),
        (setter("seed", to=1.0), "seed must be an integer, not 1.0"),
        (setter("model", to=3), "model must be a string or null, not 3"),
        (setter("recipe", to=None), "recipe must be a string, not None"),
        (setter("convention", to="imperial"), "convention must be one of torch, caffe, not 'imp"),
        (setter("scoring", to="luck"), "scoring must be one of evaluate, fidelity, not 'luck'"),
        (setter("targets", to=[]), "targets must be a list of distinct names"),
        (setter("targets", to=["cpu", "cpu"]), "targets must be a list of distinct names"),
        (setter("targets", to=[["cpu"]]), "targets must be a list of distinct names"),
        (setter("targets", to=["gpu"]), "the field 'gpu' is missing"),
        (setter("points", to=[]), "it has no points"),
        (setter("points", to={}), "points must be a list"),
        (setter(*POINT, to=[]), "point 0 is refused: a JSON object is expected"),
        (setter(*POINT, "more", to=1), "point 0 is refused: unknown field 'more'"),
        (setter(*POINT, "score", to="high"), "score must be a number, not 'high'"),
        (setter(*POINT, "score", to=10**400), "score must be a finite number"),
        (setter(*POINT, "subnet", to={"conv1": "24"}), "conv1 must be an integer"),
        (setter(*POINT, "subnet", to={"conv1": -1}), "conv1 must be between 0"),
        (setter(*POINT, "subnet", to={"conv1": 2}), "a subnet stands twice"),
        (setter(*POINT, "subnet", to={"conv2": 1}), "point 1 has other units than point 0"),
        (setter(*COST, "macs", to=1.5), "macs must be an integer"),
        (setter(*COST, "macs", to=-1), "costs: cpu is refused: macs must be between 0"),
        (setter(*COST, "latency_ms", to="5"), "latency_ms must be a number"),
        (
            setter(*COST, "latency_ms", to=-1),
            "cpu is refused: latency_ms must be a number from 0 on",
        ),
        (setter(*COST, "latency_ms", to=-1e-9), "latency_ms must be .* from 0 on, not -1e-09"),
        (setter(*COST, "latency_ms", to=math.nan), "NaN is not a finite number"),
        (setter(*COST, "joules", to=5), "unknown field 'joules'"),
        (setter("fingerprint", "more", to=5), "unknown field 'more'"),
        (lambda document: document.pop("recipe"), "the field 'recipe' is missing"),
    ],
)
def test_a_changed_plan_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    path = tmp_path / "plan.json"
    path.write_text(changed(change))
    with pytest.raises(ArtifactError, match=message):
        Plan.load(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "Expecting value"),
        (b"[]", "a JSON object is expected"),
        (b'{"a": 1, "a": 1}', "the key 'a' stands twice"),
        (b'{"a": NaN}', "NaN is not a finite number"),
        (b'{"a": -Infinity}', "-Infinity is not a finite number"),
        (b"[" * 100_000, "nested too deeply"),
        (b"\xff\xfe", "not UTF-8"),
        (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
    ],
)
def test_files_that_are_no_plan(tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(text)
    with pytest.raises(ArtifactError, match=message):
        Plan.load(path)


def test_a_number_too_large_for_a_float_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(small_plan().to_json().replace('"score": 1.0', '"score": 1e999'))
    with pytest.raises(ArtifactError, match="score must be a finite number, not inf"):
        Plan.load(path)
