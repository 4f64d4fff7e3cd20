"""Prints that cannot be told, what a search does then, and when it takes them."""

from __future__ import annotations

import functools
import sqlite3
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest

from nestify.errors import UsageError
from nestify.explore import search
from nestify.explore.function_hash import codeprint
from nestify.explore.plan import Plan
from tests.fakes import chain


class Unpicklable:
    def __reduce__(self) -> Any:
        raise ValueError("not me")


UNTOLD: dict[str, Any] = {
    "generator": lambda: (x for x in range(3)),
    "file": lambda: sys.__stdout__,
    "unpicklable": Unpicklable,
    "far too deep": lambda: functools.reduce(lambda x, _: [x], range(5_000), []),
}


@pytest.mark.parametrize("make", UNTOLD.values(), ids=UNTOLD.keys())
def test_what_cannot_be_told_is_refused_where_it_is_stored(make: Any, tmp_path: Path) -> None:
    thing = make()

    def evaluate(model: Any) -> float:
        return model.score() if thing is not None else 0.0

    def searched(**options: Any) -> Plan:
        return search(cast(Any, chain(2)), evaluate, max_evaluations=4, **options)

    with pytest.raises(UsageError, match=r"cannot be told .* pass evaluator=\"a name\""):
        searched(storage=tmp_path / "search.db")
    assert not (tmp_path / "search.db").exists()
    assert searched(storage=tmp_path / "search.db", evaluator="e").points
    one, other = searched(), searched()
    assert [p.score for p in one.points] == [p.score for p in other.points]
    assert one.evaluator != other.evaluator, "nobody knows whether the scores compare"


def test_what_cannot_be_told_is_named() -> None:
    stream = (x for x in range(3))

    def inner() -> Any:
        return stream

    with pytest.raises(UsageError, match=r"a generator \(`stream` of `inner`\) has a state"):
        codeprint(lambda: inner())
    assert next(stream) == 0, "nothing is taken out of it"


def test_locks_do_not_matter() -> None:
    lock = threading.Lock()
    assert codeprint(lambda: lock)


def test_the_print_is_taken_before_anything_is_scored(tmp_path: Path) -> None:
    calls: list[int] = []

    def evaluate(model: Any) -> float:
        calls.append(1)
        return model.score()

    path = tmp_path / "search.db"
    plan = search(cast(Any, chain(2)), evaluate, storage=path, max_evaluations=4)
    with closing(sqlite3.connect(path)) as file:
        assert file.execute("SELECT DISTINCT evaluator FROM scores").fetchall() == [
            (plan.evaluator,)
        ]
    calls.clear()
    assert search(cast(Any, chain(2)), evaluate, storage=path, max_evaluations=4) == plan
    assert not calls
