"""What an evaluation shares with those before it, and that the search makes use of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestify.explore.surrogate.encoding import Genes
from nestify.explore.surrogate.shared_work import Work
from tests.explore.test_methods import Table
from tests.fakes import chain

BEFORE = st.lists(st.sampled_from([0.0, 0.1, 0.4, 0.7, 0.9]), min_size=1, max_size=6)


def left(before: list[float], row: Any, known: Any) -> float:
    """What comes from the first unit on in which ``row`` differs from each of ``known``."""
    shared = 0.0
    for other in known:
        different = [b for b, a, o in zip(before, row, other, strict=True) if a != o]
        shared = max(shared, min(different, default=max(before)))
    return 1 - shared


@given(BEFORE, st.data())
def test_what_is_left_comes_from_the_first_unit_on_that_differs(
    before: list[float], data: Any
) -> None:
    row = st.lists(st.integers(0, 2), min_size=len(before), max_size=len(before))
    known, rows = data.draw(st.tuples(st.lists(row, max_size=5), st.lists(row, min_size=1)))
    work = Work(np.array(before), np.full(len(before), 2))
    for one in known:
        work.note(np.array([one]))
    prints = work.prints(np.array(rows))
    assert work.left(prints) == pytest.approx([left(before, r, known) for r in rows])
    assert work.left_after(prints, 0) == pytest.approx([left(before, r, rows[:1]) for r in rows])


def test_fn3_scores_subnets_that_share_more_where_the_order_of_units_is_known() -> None:
    nested = chain(8, u0=0.3, u3=0.2, u7=0.1)
    before = {f"u{i}": i / 8 for i in range(8)}
    genes = Genes(nested.space)

    def average(told: dict[str, float]) -> float:
        table = Table(nested, before=told).run("fn3{evaluations=120}")
        rows, work = genes.rows(list(table.scores)), Work(np.arange(8) / 8, genes.most)
        shares: list[float] = []
        for row in rows:
            shares += work.left(work.prints(row[None])).tolist()
            work.note(row[None])
        return float(np.mean(shares[20:]))

    assert average(before) < 0.8 * average({})
