"""Where evaluations run: in this process, in several, or on the machines of a Ray cluster.

All give the same scores for the same seed: a method waits for its whole round, so the order in
which evaluations end decides nothing.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch

from nestify.errors import CaptureError, UsageError
from nestify.support.arguments import Valid, check, whole
from nestify.support.worker_processes import end_with_parent

if TYPE_CHECKING:
    from nestify.explore.evaluator import Evaluator
    from nestify.explore.protocol import Samples
    from nestify.space import Subnet

__all__ = ["WORKERS", "Executor", "Result", "Task", "check_workers", "executor"]


class Task(NamedTuple):
    """One part of the data for one subnet."""

    subnet: Subnet
    part: int


class Result(NamedTuple):
    """What a task gave, and how long it took."""

    task: Task
    samples: Samples
    seconds: float


class Executor(Protocol):
    """Runs tasks; yields each result as soon as it is there, in any order."""

    def run(self, tasks: Sequence[Task]) -> Iterator[Result]:
        """Run ``tasks``."""
        ...

    def close(self) -> None:
        """End what was started."""
        ...


def _is_ray(workers: Any) -> bool:
    return isinstance(workers, str) and re.fullmatch(r"ray(:0*[1-9][0-9]*)?", workers) is not None


WORKERS = whole(1) | Valid("'ray' or 'ray:N'", _is_ray)


def check_workers(workers: Any) -> None:
    """Raise UsageError where there is no such kind of workers, or Ray is not installed.

    >>> check_workers(2)
    """
    check("search", {"workers": workers}, {"workers": WORKERS})
    if isinstance(workers, str) and find_spec("ray") is None:
        raise UsageError(f"workers={workers!r} needs Ray: pip install nestify[ray]")


def executor(evaluator: Evaluator, workers: int | str) -> Executor:
    """An executor of ``workers``: 1 is this process, more are processes, ``"ray:N"`` is Ray.

    Raises:
        UsageError: no such kind of workers, or Ray is not installed.
    """
    check_workers(workers)
    if isinstance(workers, str):
        count = workers.partition(":")[2]
        return _Ray(evaluator, int(count) if count else None)
    return _Here(evaluator) if workers == 1 else _Processes(evaluator, int(workers))


def _threads(workers: int) -> int:
    return max(1, torch.get_num_threads() // workers)


class _Here:
    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator
        self._stack = ExitStack()
        self._stack.enter_context(evaluator.reusing())

    def run(self, tasks: Sequence[Task]) -> Iterator[Result]:
        for task in tasks:
            yield Result(task, *self._evaluator.timed(*task))

    def close(self) -> None:
        self._stack.close()


class _Processes:
    """Processes of one machine, each with a copy of the model; started by the first task."""

    def __init__(self, evaluator: Evaluator, workers: int) -> None:
        self._evaluator, self._workers = evaluator, workers
        self._pool: Any = None

    def run(self, tasks: Sequence[Task]) -> Iterator[Result]:
        if self._pool is None:
            from loky import ProcessPoolExecutor

            from nestify.explore.pickling import pack

            begin = partial(_begin, os.getpid(), pack(self._evaluator), _threads(self._workers))
            self._pool = ProcessPoolExecutor(self._workers, initializer=begin)
        futures: dict[Any, Task] = {}
        try:
            for task in tasks:
                futures[self._pool.submit(_evaluate, dict(task.subnet), task.part)] = task
            for future in as_completed(futures):
                yield Result(futures[future], *future.result())
        except BrokenProcessPool as error:
            raise _died(error) from error
        finally:
            for future in futures:
                future.cancel()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, kill_workers=True)


def _died(error: Exception) -> CaptureError:
    """What a person can do about a worker that is gone."""
    codes = re.search(r"exit codes of the workers are \{(.*)\}", str(error))
    return CaptureError(
        f"a worker process died{f' ({codes[1]})' if codes else ''} while it scored subnets: "
        "evaluate ended the process or crashed it, or memory ran out; try workers=1, or fewer "
        "workers"
    )


_worker: Any = None


def _begin(parent: int, packed: bytes, threads: int) -> None:
    """Make the worker of this process."""
    global _worker
    end_with_parent(parent)
    from nestify.explore.pickling import Worker

    _worker = Worker(packed, threads)


def _evaluate(subnet: dict[str, int], part: int) -> Any:
    return _worker.run(_subnet(subnet), part)


def _subnet(sizes: dict[str, int]) -> Subnet:
    from nestify.space import Subnet

    return Subnet(sizes)


class _Ray:
    """Actors of a Ray cluster: the one that ``ray start`` made, or one on this machine."""

    def __init__(self, evaluator: Evaluator, workers: int | None) -> None:
        import ray

        self._ray: Any = ray
        self._mine = not ray.is_initialized()
        if self._mine:
            _connect(ray)
        self._evaluator = evaluator
        self._count = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        self._actors: list[Any] = []

    def run(self, tasks: Sequence[Task]) -> Iterator[Result]:
        if not self._actors:
            self._start()
        waiting = iter(tasks)
        running: dict[Any, tuple[Any, Task]] = {}

        def give(actor: Any) -> None:
            task = next(waiting, None)
            if task is not None:
                running[actor.run.remote(dict(task.subnet), task.part)] = (actor, task)

        for actor in self._actors:
            give(actor)
        while running:
            (ready, *_), _ = self._ray.wait(list(running), num_returns=1)
            actor, task = running.pop(ready)
            yield Result(task, *self._got(ready))
            give(actor)

    def _got(self, ready: Any) -> tuple[Samples, float]:
        raised = self._ray.exceptions
        try:
            return self._ray.get(ready)
        except raised.RayTaskError as error:
            raise error.cause from None  # its own message is a whole traceback
        except raised.RayActorError as error:
            raise _died(error) from error

    def _start(self) -> None:
        from nestify.explore.pickling import pack

        threads = 1 if self._count > 1 else torch.get_num_threads()
        packed = self._ray.put(pack(self._evaluator))
        make: Callable[..., Any] = self._ray.remote(num_cpus=threads)(_Actor).remote
        self._actors = [make(packed, threads) for _ in range(self._count)]

    def close(self) -> None:
        for actor in self._actors:
            self._ray.kill(actor)
        if self._mine:
            self._ray.shutdown()


class _Actor:
    """A worker as a Ray actor."""

    def __init__(self, packed: bytes, threads: int) -> None:
        from nestify.explore.pickling import Worker

        self._worker = Worker(packed, threads)

    def run(self, subnet: dict[str, int], part: int) -> Any:
        return self._worker.run(_subnet(subnet), part)


def _connect(ray: Any) -> None:
    with _logger_as_found("ray"):
        try:
            ray.init(address="auto", log_to_driver=False, logging_level="error")
        except ConnectionError:  # no cluster runs here
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="error")


@contextmanager
def _logger_as_found(name: str) -> Generator[None]:
    """Keep level and formats of a logger: Ray sets both, also of handlers that are not its own."""
    logger = logging.getLogger(name)
    level, formatters = logger.level, [(one, one.formatter) for one in logger.handlers]
    try:
        yield
    finally:
        logger.setLevel(level)
        for handler, formatter in formatters:
            handler.setFormatter(formatter)
