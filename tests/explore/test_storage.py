"""The file of scores: what is known is never run again, and a foreign file is refused."""

from __future__ import annotations

import multiprocessing
import sqlite3
import zlib
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from nestify.errors import ArtifactError, UsageError
from nestify.explore.storage import Storage, stored_scores
from nestify.space import Subnet

S = Subnet({"a": 3, "b": 5})


def opened(path: Path, model: str = "m", evaluator: str = "e") -> Storage:
    return Storage(path, model=model, evaluator=evaluator)


@given(arrays.arrays(np.float64, st.integers(1, 50), elements=st.floats(-1e100, 1e100)))
def test_samples_come_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, samples: np.ndarray
) -> None:
    path = tmp_path_factory.mktemp("db") / "search.db"
    with opened(path) as storage:
        storage.add(S, 2, samples, 0.1)
    with opened(path) as storage:
        found = storage.samples(Subnet({"b": 5, "a": 3}), 2)
        assert found is not None
        assert found.tobytes() == samples.tobytes()
        assert storage.samples(S, 1) is None
        assert len(storage) == 1


def test_rows_are_of_a_model_an_evaluator_a_subnet_and_a_part(tmp_path: Path) -> None:
    path = tmp_path / "search.db"
    with opened(path) as storage:
        storage.add(S, 0, np.ones(1), 0.1)
        storage.add_latency_ms(S, "cpu", 3.5)
    for model, evaluator in (("m2", "e"), ("m", "e2")):
        with opened(path, model, evaluator) as storage:
            assert storage.samples(S, 0) is None
            assert len(storage) == 0
    with opened(path) as storage:
        assert storage.samples(Subnet({"a": 3, "b": 4}), 0) is None
        assert storage.latency_ms(S, "cpu") == 3.5
        assert storage.latency_ms(S, "gpu") is None


def test_the_first_score_stays(tmp_path: Path) -> None:
    with opened(tmp_path / "search.db") as one, opened(tmp_path / "search.db") as other:
        one.add(S, 0, np.array([0.25]), 0.1)
        other.add(S, 0, np.array([0.75]), 0.1)
        assert one.samples(S, 0) == other.samples(S, 0) == np.array([0.25])


def _write_many(path: Path, first: int) -> None:
    with opened(path) as storage:
        for i in range(100):
            storage.add(Subnet({"a": first + i}), 0, np.array([float(i)]), 0.0)


def test_processes_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "search.db"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_many, args=(path, 50 * k)) for k in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 4
    with opened(path) as storage:
        assert len(storage) == 250
    with closing(sqlite3.connect(path)) as file:
        assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    text = tmp_path / "text.db"
    text.write_text("not a database, but long enough to be taken for one" * 20)
    with pytest.raises(ArtifactError, match=r"text.db is refused: file is not a database"):
        opened(text)
    other = tmp_path / "other.db"
    with closing(sqlite3.connect(other)) as file:
        file.execute("CREATE TABLE scores (x)")
        file.commit()
    with pytest.raises(ArtifactError, match="another program's database"):
        opened(other)
    later = tmp_path / "later.db"
    with opened(later), closing(sqlite3.connect(later)) as file:
        file.execute("PRAGMA user_version = 9")
        file.commit()
    with pytest.raises(ArtifactError, match="its version is 9, this nestify reads 1"):
        opened(later)
    with pytest.raises(UsageError, match="cannot open the storage"):
        opened(tmp_path / "absent" / "search.db")


@pytest.mark.parametrize(
    "packed",
    [
        b"garbage",
        zlib.compress(b"123"),
        zlib.compress(b""),
        zlib.compress(np.array([np.nan]).tobytes()),
        zlib.compress(np.ones(10).tobytes())[:-8],
        "text",
        7,
    ],
)
def test_damaged_rows_are_refused(tmp_path: Path, packed: object) -> None:
    path = tmp_path / "search.db"
    with opened(path) as storage:
        storage.add(S, 0, np.ones(1), 0.1)
        with closing(sqlite3.connect(path)) as file:
            file.execute("UPDATE scores SET samples = ?", (packed,))
            file.commit()
        with pytest.raises(ArtifactError, match="a row is damaged"):
            storage.samples(S, 0)


@pytest.mark.parametrize("table", ["scores", "latencies"])
def test_damaged_files_are_refused(tmp_path: Path, table: str) -> None:
    path = tmp_path / "search.db"
    with opened(path) as storage:
        with closing(sqlite3.connect(path)) as file:
            file.execute(f"DROP TABLE {table}")
            file.commit()
        with pytest.raises(ArtifactError, match=f"search.db is refused: no such table: {table}"):
            (storage.samples(S, 0), storage.latency_ms(S, "cpu"))


def test_overwritten_pages_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "search.db"
    with opened(path) as storage:
        storage.add(S, 0, np.ones(1), 0.1)
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    with opened(path) as storage:
        for read in (lambda: storage.samples(S, 0), lambda: storage.latency_ms(S, "cpu")):
            with pytest.raises(ArtifactError, match=r"search.db is refused: .*malformed"):
                read()
        with pytest.raises(ArtifactError, match=r"search.db is refused: .*malformed"):
            len(storage)


def test_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nestify.explore.storage._MOST_BYTES", 1024)
    with opened(tmp_path / "search.db") as storage:
        storage.add(S, 0, np.zeros(10_000), 0.1)
        with pytest.raises(ArtifactError, match="a row is damaged"):
            storage.samples(S, 0)


def test_counting_is_safe_on_any_file(tmp_path: Path) -> None:
    assert stored_scores(tmp_path / "absent" / "search.db") == 0
    (tmp_path / "text.db").write_text("x" * 5000)
    assert stored_scores(tmp_path / "text.db") == 0
