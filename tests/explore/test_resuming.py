"""A search that is killed (SIGKILL) and run again: the same plan, nothing lost, nothing twice."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from torch import nn

from nestify import targets
from nestify.explore import search
from nestify.explore.plan import Plan
from nestify.space import Subnet
from nestify.targets import Target
from tests.fakes import FakeNested, chain

PARTS = 6


@pytest.fixture(autouse=True)
def still_target(monkeypatch: pytest.MonkeyPatch) -> None:
    """A target on which everything takes a millisecond."""
    monkeypatch.setitem(targets.TARGETS, "sim", "tests.fakes:SIM")
    sim = Target("sim", "still", 1, lambda model, args, kwargs: 1.0)
    monkeypatch.setattr("tests.fakes.SIM", sim, raising=False)


def run(log: Path, storage: Path | None, *, raced: bool, method: str) -> Plan:
    """A search whose evaluations take 2 ms, and are noted when they begin."""

    def begin(nested: FakeNested, part: int) -> float:
        with log.open("a") as file:
            file.write(f"{nested.active.to_json()} {part}\n")
        time.sleep(0.002)
        return nested.score()

    def whole(model: nn.Module) -> float:
        return begin(cast(FakeNested, model), 0)

    def each(model: nn.Module, part: int) -> np.ndarray:
        score = begin(cast(FakeNested, model), part)
        return (np.random.default_rng(part).random(40) < score).astype(float)

    options: dict[str, Any] = {"batches": list(range(PARTS))} if raced else {}
    return search(
        cast(Any, chain(6, u1=0.9)),
        each if raced else whole,
        target="sim",
        method=method,
        storage=storage,
        seed=5,
        max_evaluations=240,
        evaluator="the same, whatever its log",
        **options,
    )


def begun(log: Path) -> list[tuple[Subnet, int]]:
    rows = [line.rpartition(" ") for line in log.read_text().splitlines()]
    return [(Subnet.from_json(text), int(part)) for text, _, part in rows]


def known(storage: Path) -> set[tuple[Subnet, int]]:
    if not storage.exists():
        return set()
    with closing(sqlite3.connect(storage)) as file:
        tables = file.execute("SELECT count(*) FROM sqlite_master WHERE name='scores'").fetchone()
        rows = file.execute("SELECT subnet, part FROM scores").fetchall() if tables[0] else []
    return {(Subnet.from_json(text), part) for text, part in rows}


def killed(work: Callable[[], object], seconds: float) -> bool:
    """Run ``work`` in a process of its own; whether it had to be killed after ``seconds``."""
    pid = os.fork()
    if not pid:
        try:
            work()
        finally:
            os._exit(0)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return False
        time.sleep(0.0005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return True


@pytest.mark.parametrize(
    ("raced", "method", "least"), [(False, "fn3", 50), (True, "fn3", 20), (True, "algorithm1", 20)]
)
def test_kill_and_resume(tmp_path: Path, raced: bool, method: str, least: int) -> None:
    expected = run(tmp_path / "undisturbed", None, raced=raced, method=method)
    tasks = begun(tmp_path / "undisturbed")
    assert len(tasks) == len(set(tasks)), "nothing is evaluated twice"

    storage, rng, kills = tmp_path / "search.db", random.Random(0), 0
    for attempt in range(10_000):
        before = known(storage)
        log = tmp_path / f"log{attempt}"
        log.touch()
        work = lambda log=log: run(log, storage, raced=raced, method=method)  # noqa: E731
        was_killed = killed(work, rng.uniform(0.0, 0.03) if kills < least else 60.0)
        kills += was_killed
        started, after = begun(log), known(storage)
        assert not before & set(started), "what was known was evaluated again"
        assert before <= after
        assert len(started) - len(after - before) <= 1, "more than the one in flight was lost"
        if not was_killed:
            break
    assert kills == least
    assert set(tasks) == known(storage)
    log = tmp_path / "again"
    log.touch()
    assert run(log, storage, raced=raced, method=method) == expected
    assert not begun(log)
