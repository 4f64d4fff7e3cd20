"""The ledger: what a search learns of subnets that were stopped before all parts were scored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from nestify.explore.executors import Result, Task
from nestify.explore.ledger import Ledger
from nestify.explore.protocol import Round
from nestify.space import Subnet

PARTS = (0.9, 0.5, 0.7)  # how easy each part is: subnets of size 100 get so much of it right


class Known:
    """Scores of subnets on parts of the data, in place of networks."""

    def run(self, tasks: Sequence[Task]) -> Iterator[Result]:
        for subnet, part in tasks:
            right = round(100 * PARTS[part]) - (100 - subnet["unit"])
            samples = np.repeat([1.0, 0.0], [right, 100 - right])
            yield Result(Task(subnet, part), samples, 0.0)

    def close(self) -> None: ...


def test_estimates_of_what_was_stopped_know_that_parts_differ() -> None:
    """The first part is the easiest: what is stopped behind it must not look better for that."""
    ledger = Ledger(Known(), len(PARTS))
    ledger.ask(Round([Subnet({"unit": 100})]))
    sizes = (99, 98, 60, 55)
    found = ledger.ask(Round([Subnet({"unit": size}) for size in sizes], keep=2))
    assert list(found.whole) == [True, True, False, False]
    whole = [sum(PARTS) / 3 - (100 - size) / 100 for size in sizes]
    assert found.values == pytest.approx(whole)
    for value, samples, size in zip(found.values, found.samples, sizes, strict=True):
        assert samples is not None
        assert value == pytest.approx(samples.mean())
        assert samples[:100].sum() == size - 10  # of the first part, which all were scored on
        assert len(samples) == 300
