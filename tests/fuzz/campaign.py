"""A campaign: chunks of models over processes, and a file of finished chunks to resume from."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from nestify.errors import ArtifactError, VerificationError
from nestify.support.worker_processes import end_with_parent
from tests.fuzz.chunks import Settings, Tally, run_chunk

__all__ = ["CHUNK", "campaign", "code_hash"]

CHUNK = 80
_TASKS = 60  # then a worker starts afresh: the exporters keep memory


@cache
def code_hash() -> str:
    """A hash of the source of nestify and of the fuzzer: other code gives other results."""
    root = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256()
    for folder in ("nestify", "passes", "targets", "tests/fuzz"):
        for path in sorted((root / folder).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def campaign(
    settings: Settings,
    models: int,
    *,
    jobs: int = 1,
    storage: Path | None = None,
    progress: Callable[[int, Tally], None] = lambda done, tally: None,
) -> Tally:
    """Check models 0 to ``models - 1``; chunks that ``storage`` holds are not run again.

    Raises:
        ArtifactError: ``storage`` is of another campaign, or of other code.
        VerificationError: a model ended its process; what was finished is in ``storage``.
    """
    total = Tally()
    done = _stored(storage, settings) if storage else {}
    starts = list(range(0, models, CHUNK))
    chunks = {start: range(start, min(start + CHUNK, models)) for start in starts}
    todo = [start for start in starts if done.get(start, Tally()).models != len(chunks[start])]
    for start in starts:
        if start not in todo:
            total.add(done[start])
    progress(total.models, total)
    for start, tally in _results(settings, {start: chunks[start] for start in todo}, jobs):
        total.add(tally)
        if storage:
            _append(storage, {"start": start, "tally": tally.to_dict()})
        progress(total.models, total)
    return total


def _results(
    settings: Settings, chunks: dict[int, range], jobs: int
) -> Iterator[tuple[int, Tally]]:
    if jobs == 1 and len(chunks) <= 1:
        for start, indices in chunks.items():
            yield start, run_chunk(settings, indices)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        jobs, spawn, end_with_parent, (os.getpid(),), max_tasks_per_child=_TASKS
    ) as pool:
        waiting = iter(chunks.items())
        running: dict[Future[Tally], int] = {}
        try:
            while True:
                for start, indices in waiting:
                    running[pool.submit(run_chunk, settings, indices)] = start
                    if len(running) > jobs:
                        break
                if not running:
                    return
                ready, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in ready:
                    try:
                        tally = future.result()
                    except BrokenProcessPool as error:
                        raise _died(chunks, running.values()) from error
                    yield running.pop(future), tally
        finally:
            for future in running:
                future.cancel()


def _died(chunks: Mapping[int, range], starts: Iterable[int]) -> VerificationError:
    """A model that ends the process: its chunk is one of those that ran, or that came next."""
    running = ", ".join(f"{chunks[s].start} to {chunks[s].stop - 1}" for s in sorted(starts))
    return VerificationError(
        f"a worker died on one of the models {running}: run them alone (--only INDEX) to see which"
    )


def _stored(storage: Path, settings: Settings) -> dict[int, Tally]:
    """Finished chunks by their first model; a line cut short by a kill is left out."""
    header = {"settings": _plain(settings), "code": code_hash()}
    if not storage.exists() or not storage.stat().st_size:
        _append(storage, header)
        return {}
    found: dict[int, Tally] = {}
    lines = storage.read_text(encoding="utf-8").splitlines()
    first = _parsed(lines[0])
    if first != header:
        raise ArtifactError(
            f"{storage} holds a campaign of other settings or of other code; name another file, "
            "or remove it to start again"
        )
    for line in lines[1:]:
        data = _parsed(line)
        if data is not None:
            found[data["start"]] = Tally.from_dict(data["tally"])
    return found


def _plain(settings: Settings) -> dict[str, Any]:
    return {**asdict(settings), "focus": list(settings.focus)}


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def _append(storage: Path, data: Mapping[str, Any]) -> None:
    with storage.open("a", encoding="utf-8") as file:
        if file.tell() and not storage.read_bytes().endswith(b"\n"):
            file.write("\n")
        file.write(json.dumps(data) + "\n")
