"""Measuring: seconds of a call, a limit on them, and what machine they were spent on."""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import json
import os
import platform
import signal
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from tabulate import tabulate

T = TypeVar("T")
Row = dict[str, Any]
RESULTS = Path(__file__).parents[1] / "results"
PACKAGES = ("nestify", "torch", "torchvision", "torch-pruning", "nvidia-modelopt", "numpy")


class Spent(NamedTuple):
    """Seconds on the wall, and seconds of processor time of this process."""

    wall: float
    cpu: float


def timed(call: Callable[[], T]) -> tuple[T, Spent]:
    """What ``call`` returns, and how long it took; earlier garbage is not on its bill."""
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    return result, Spent(time.perf_counter() - wall, time.process_time() - cpu)


def seconds(call: Callable[[], T]) -> float:
    """How long ``call`` takes on the wall."""
    return timed(call)[1].wall


@contextlib.contextmanager
def limit(most: float) -> Generator[None]:
    """Raise TimeoutError in a block that takes longer than ``most`` seconds."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"over {most:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, most)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Stopwatch:
    """A function that adds up the time spent in it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.total, self._function = 0.0, function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call and note the time."""
        start = time.perf_counter()
        try:
            return self._function(*args, **kwargs)
        finally:
            self.total += time.perf_counter() - start


def machine() -> Row:
    """Cores, load and versions: what figures depend on."""
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "processor": _processor(),
        **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
        "cores": os.cpu_count(),
        "load": [round(load, 1) for load in os.getloadavg()],
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **versions,
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def show(title: str, rows: list[Row]) -> None:
    """Print one table."""
    print(f"\n{title}\n\n{tabulate(rows, headers='keys', tablefmt='github', floatfmt='.3g')}")


def write(name: str, figures: Row) -> None:
    """Write a results file: the machine and the figures."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **figures}, indent=2) + "\n")
    print(f"\nwrote {path}")
