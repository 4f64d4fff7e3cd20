"""The ledger of a search: what is known of each subnet, and how many more may be scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from nestify.errors import UsageError
from nestify.explore.executors import Task
from nestify.explore.protocol import Round, Scores
from nestify.explore.racing import behind, stages

if TYPE_CHECKING:
    from nestify.explore.executors import Executor
    from nestify.explore.protocol import Samples
    from nestify.explore.storage import Storage
    from nestify.space import Subnet

__all__ = ["Ledger"]

Told = Callable[[int], None]


class Ledger:
    """Scores subnets, each once, until ``limit`` of them were begun; ``alike`` gives the one that
    is scored for all that are the same network.

    >>> ledger = Ledger(executor, parts=1, storage=None, limit=64)
    >>> ledger.ask(Round([nested.space.largest()])).values
    [1.0]

    Raises:
        UsageError: a batch has other numbers of samples under two subnets.

    Attributes:
        scores: the score of every subnet that was scored on all the data, in the order of rounds.
        begun: every subnet that was scored on some of them.
        ran: how many parts were run, and not known before.
        told: called after every part with the number of subnets that any is known of.
    """

    def __init__(
        self,
        executor: Executor,
        parts: int,
        storage: Storage | None = None,
        limit: int | None = None,
        alike: Callable[[Subnet], Subnet] | None = None,
    ) -> None:
        self.scores: dict[Subnet, float] = {}
        self.begun: dict[Subnet, None] = {}
        self.ran = 0
        self.told: Told = lambda begun: None
        self._executor, self._storage = executor, storage
        self._stages = stages(parts)
        self._limit = limit
        self._alike = alike
        self._known: dict[Task, Samples] = {}
        self._counts: dict[int, tuple[Subnet, int]] = {}  # of samples, by part, and who had them
        self._touched: set[Subnet] = set()
        self._total = 0  # samples in all, known once a subnet is scored whole

    @property
    def left(self) -> int:
        """How many more subnets may be begun."""
        return 1 << 40 if self._limit is None else self._limit - len(self.begun)

    def ask(self, asked: Round, most: int | None = None) -> Scores:
        """Score the subnets of a round, as far as the limit and ``most`` new ones allow."""
        if self._alike is not None:
            asked = replace(asked, subnets=[self._alike(subnet) for subnet in asked.subnets])
        places: dict[Subnet, int] = {}
        end = len(self.begun) + (self.left if most is None else min(most, self.left))
        for i, subnet in enumerate(asked.subnets):
            if subnet not in places and (subnet in self.begun or len(self.begun) < end):
                self.begun[subnet] = None
                places[subnet] = i
        racing = list(places)
        for stage in self._stages:
            self._run([Task(subnet, part) for subnet in racing for part in stage])
            racing = self._in_front(asked, racing, places, stage.stop)
        for subnet in racing:
            self._note(subnet)
        samples = [self._estimates(subnet, racing) for subnet in asked.subnets]
        values = [None if found is None else float(found.mean()) for found in samples]
        return Scores(values, [subnet in self.scores for subnet in asked.subnets], samples)

    def _run(self, tasks: Sequence[Task]) -> None:
        unknown = [task for task in tasks if not self._look_up(task)]
        for result in self._executor.run(unknown):
            self._check_count(result.task, result.samples)
            if self._storage is not None:
                self._storage.add(*result.task, result.samples, result.seconds)
            self.ran += 1
            self._learn(result.task, result.samples)

    def _look_up(self, task: Task) -> bool:
        if task not in self._known and self._storage is not None:
            found = self._storage.samples(*task)
            if found is not None:
                self._check_count(task, found)
                self._learn(task, found)
        return task in self._known

    def _check_count(self, task: Task, samples: Samples) -> None:
        """Subnets are compared sample by sample, so all have the same ones of a batch."""
        first, count = self._counts.setdefault(task.part, (task.subnet, len(samples)))
        if len(samples) != count:
            raise UsageError(
                "evaluate(model, batch) must return the score of each sample of the batch, as many "
                f"under every subnet: of batch {task.part} it returned {count} under {first} and "
                f"{len(samples)} under {task.subnet}"
            )

    def _learn(self, task: Task, samples: Samples) -> None:
        self._known[task] = samples
        self._touched.add(task.subnet)
        self.told(len(self._touched))

    def _in_front(
        self, asked: Round, racing: list[Subnet], places: dict[Subnet, int], seen: int
    ) -> list[Subnet]:
        """Those of ``racing`` that are not clearly behind after so many parts."""
        if not asked.keep or not self._total or seen == self._stages[-1].stop:
            return racing
        samples = [self._samples(subnet, seen) for subnet in racing]
        merits = [asked.merit(places[subnet]) for subnet in racing]
        lost = behind(samples, merits, asked.keep, self._total)
        return [subnet for i, subnet in enumerate(racing) if i not in lost]

    def _samples(self, subnet: Subnet, parts: int) -> Samples:
        return np.concatenate([self._known[Task(subnet, part)] for part in range(parts)])

    def _note(self, subnet: Subnet) -> None:
        if subnet not in self.scores:
            samples = self._samples(subnet, self._stages[-1].stop)
            self._total = len(samples)
            self.scores[subnet] = float(samples.mean())

    def _estimates(self, subnet: Subnet, finished: Sequence[Subnet]) -> Samples | None:
        """The scores of all samples; of a subnet that was stopped, estimates of those left out.

        Some samples are harder than others: how those that ``finished`` the same round did on them
        tells, and how much they are ahead on the others.
        """
        parts = range(self._stages[-1].stop)
        if subnet in self.scores:
            return self._samples(subnet, parts.stop)
        known = [part for part in parts if Task(subnet, part) in self._known]
        if subnet not in self.begun or not known:
            return None
        behind = self._mean([subnet], known) - (self._mean(finished, known) if finished else 0.0)
        return np.concatenate([self._part(subnet, part, finished, behind) for part in parts])

    def _part(
        self, subnet: Subnet, part: int, finished: Sequence[Subnet], behind: float
    ) -> Samples:
        found = self._known.get(Task(subnet, part))
        if found is not None:
            return found
        others = [self._known[Task(other, part)] for other in finished]
        _, count = self._counts[part]
        return behind + np.mean(others or [np.zeros(count)], axis=0)

    def _mean(self, subnets: Sequence[Subnet], parts: Sequence[int]) -> float:
        found = [self._known[Task(subnet, part)] for subnet in subnets for part in parts]
        return float(np.concatenate(found).mean())
