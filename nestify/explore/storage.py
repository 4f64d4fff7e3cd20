"""Every score a row in SQLite, so that a search can be killed at any time and run again.

A row is keyed by the model, the evaluator, the subnet and the part of the data: nothing that is
known is evaluated again, whoever found it. Rows are written one transaction each (WAL, synchronous
FULL), so several processes may share a file. Nothing in the file is executed.
"""

from __future__ import annotations

import os
import sqlite3
import zlib
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nestify.errors import ArtifactError, UsageError
from nestify.explore.protocol import Samples

if TYPE_CHECKING:
    from nestify.space import Subnet

__all__ = ["Storage", "stored_scores"]

_APPLICATION = 0x4E455354  # "NEST", in the header of the file
_VERSION = 1
_WAIT_S = 60.0
_MOST_BYTES = 1 << 28  # of one part's samples, unpacked
_TABLES = """
CREATE TABLE IF NOT EXISTS scores (
    model TEXT NOT NULL, evaluator TEXT NOT NULL, subnet TEXT NOT NULL, part INTEGER NOT NULL,
    samples BLOB NOT NULL, score REAL NOT NULL, seconds REAL NOT NULL,
    PRIMARY KEY (model, evaluator, subnet, part)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS latencies (
    model TEXT NOT NULL, target TEXT NOT NULL, subnet TEXT NOT NULL, latency_ms REAL NOT NULL,
    PRIMARY KEY (model, target, subnet)
) WITHOUT ROWID;
"""


class Storage:
    """The scores and latencies of one model under one evaluator, in a file that others may share.

    >>> with Storage("search.db", model="3f..", evaluator="a0..") as storage:
    ...     storage.add(subnet, 0, np.array([0.93]), seconds=1.5)
    ...     storage.samples(subnet, 0)
    array([0.93])

    Raises:
        UsageError: the file cannot be opened or made.
        ArtifactError: the file is not a search's, or of another version, or damaged.
    """

    def __init__(self, path: str | os.PathLike[str], *, model: str, evaluator: str) -> None:
        self.path = Path(path)
        self.model, self.evaluator = model, evaluator
        try:
            self._file = sqlite3.connect(self.path, timeout=_WAIT_S, isolation_level=None)
        except sqlite3.Error as error:
            raise UsageError(f"cannot open the storage {self.path}: {error}") from error
        try:
            self._prepare()
        except sqlite3.Error as error:
            self._file.close()
            raise self._refused(str(error)) from error
        except ArtifactError:
            self._file.close()
            raise

    def _prepare(self) -> None:
        (tables,) = self._one("SELECT count(*) FROM sqlite_master")
        (application,) = self._one("PRAGMA application_id")
        (version,) = self._one("PRAGMA user_version")
        if tables and application != _APPLICATION:
            raise self._refused("it is another program's database")
        if tables and version != _VERSION:
            raise self._refused(f"its version is {version}, this nestify reads {_VERSION}")
        self._one("PRAGMA journal_mode = WAL")
        self._file.execute("PRAGMA synchronous = FULL")
        if not tables:
            self._file.executescript(
                f"BEGIN IMMEDIATE; {_TABLES} PRAGMA application_id = {_APPLICATION};"
                f"PRAGMA user_version = {_VERSION}; COMMIT;"
            )

    def _one(self, query: str, values: tuple[Any, ...] = ()) -> Any:
        try:
            return self._file.execute(query, values).fetchone()
        except sqlite3.Error as error:
            raise self._refused(str(error)) from error

    def _refused(self, why: str) -> ArtifactError:
        return ArtifactError(
            f"{self.path} is refused: {why}; name another file, or remove it to start again"
        )

    # --- scores -----------------------------------------------------------------------------------

    def samples(self, subnet: Subnet, part: int) -> Samples | None:
        """The scores of one part of the data, or None."""
        found = self._one(
            "SELECT samples FROM scores WHERE model=? AND evaluator=? AND subnet=? AND part=?",
            (self.model, self.evaluator, subnet.to_json(), part),
        )
        return None if found is None else self._unpacked(found[0])

    def add(self, subnet: Subnet, part: int, samples: Samples, seconds: float) -> None:
        """Keep the scores of one part; what another process has found meanwhile stays."""
        packed = zlib.compress(np.ascontiguousarray(samples, dtype="<f8").tobytes())
        key = (self.model, self.evaluator, subnet.to_json(), part)
        self._write(
            "INSERT OR IGNORE INTO scores VALUES (?, ?, ?, ?, ?, ?, ?)",
            (*key, packed, float(samples.mean()), seconds),
        )

    def _unpacked(self, packed: Any) -> Samples:
        try:
            unpacking = zlib.decompressobj()
            raw = unpacking.decompress(packed, _MOST_BYTES)
            found = np.frombuffer(raw, dtype="<f8")
        except (TypeError, ValueError, zlib.error) as error:
            raise self._refused(f"a row is damaged ({error})") from error
        whole = unpacking.eof and not unpacking.unconsumed_tail
        if not whole or not len(found) or not np.isfinite(found).all():
            raise self._refused("a row is damaged")
        return found

    def __len__(self) -> int:
        """How many parts were scored of this model under this evaluator."""
        query = "SELECT count(*) FROM scores WHERE model=? AND evaluator=?"
        return int(self._one(query, (self.model, self.evaluator))[0])

    # --- latencies --------------------------------------------------------------------------------

    def latency_ms(self, subnet: Subnet, target: str) -> float | None:
        """What was measured on ``target`` (its name and machine), or None."""
        found = self._one(
            "SELECT latency_ms FROM latencies WHERE model=? AND target=? AND subnet=?",
            (self.model, target, subnet.to_json()),
        )
        if found is None:
            return None
        if not isinstance(found[0], float) or not 0 <= found[0] < float("inf"):
            raise self._refused("a row is damaged")
        return found[0]

    def add_latency_ms(self, subnet: Subnet, target: str, latency_ms: float) -> None:
        """Keep a measurement."""
        self._write(
            "INSERT OR IGNORE INTO latencies VALUES (?, ?, ?, ?)",
            (self.model, target, subnet.to_json(), latency_ms),
        )

    def _write(self, query: str, values: tuple[Any, ...]) -> None:
        try:
            self._file.execute(query, values)
        except sqlite3.Error as error:
            raise UsageError(f"cannot write to the storage {self.path}: {error}") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Storage:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def stored_scores(path: Path) -> int:
    """How many scores a file holds, of any model; 0 where it is no storage."""
    try:
        with closing(sqlite3.connect(path)) as file:
            return int(file.execute("SELECT count(*) FROM scores").fetchone()[0])
    except sqlite3.Error:
        return 0
