"""How much memory training a nested network takes at most, beside the dense network.

    python benchmarks/train_memory.py [--runs 3] [--batch 64] [--only NAME]

The steps of ``train_step.py``, dense and sliced, and a third variant that draws the largest subnet
every time. Three measures, in MiB above what was held before training: ``tensors``, the most that
tensors hold at once; ``process``, by how much the peak of a fresh process rises; and ``returned``,
the same with ``MALLOC_MMAP_THRESHOLD_=262144``, so that glibc gives back what is freed. Without it
freed blocks stay in the heap and fit new ones only by chance: peaks of a process differ between
runs by some 15%, so each is the median of several. Writes ``results/train_memory.json``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

import nestify
from benchmarks.support.clock import Row, machine, show, write
from benchmarks.support.training_networks import CLASSES, SUBJECTS, Subject
from benchmarks.train_step import one_step

VARIANTS = ("dense", "sliced", "largest")
STEPS = 6
RETURNED = {"MALLOC_MMAP_THRESHOLD_": "262144"}
MIB = 2**20


def stepped(subject: Subject, variant: str, batch: int) -> Callable[[], None]:
    """A training step of one variant."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    x = torch.randn(batch, *subject.batch[1:])
    y = torch.randint(CLASSES, (batch,))
    if variant == "dense":
        return one_step(variant, subject.model().train(), x, y, bf16=False)
    nested = nestify.transform(subject.model(), subject.recipe, (x[:2],)).train()
    one = one_step(variant, nested, x, y, bf16=False)
    if variant == "sliced":
        return one

    def largest() -> None:
        with nested.activate(nested.space.largest()):
            one()

    return largest


def tensors_here(name: str, variant: str, batch: int) -> None:
    """Print the most that tensors made by some training steps hold at once."""
    one = stepped(named(name), variant, batch)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        for _ in range(STEPS):
            one()
    assert seen.profiler is not None
    events = seen.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = most = 0
    for _, change in changes:
        held += change
        most = max(most, held)
    print(most / MIB)


def process_here(name: str, variant: str, batch: int) -> None:
    """Print by how much some training steps raise the peak of this process."""
    one = stepped(named(name), variant, batch)
    before = status("VmRSS")
    for _ in range(STEPS):
        one()
    print(status("VmHWM") - before)


def named(name: str) -> Subject:
    """The subject of a name."""
    return next(subject for subject in SUBJECTS if subject.name == name)


def status(field: str) -> float:
    """A field of Linux's account of this process, in MiB; getrusage has the peak of the parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def fresh(
    function: Callable[[str, str, int], None],
    subject: Subject,
    variant: str,
    batch: int,
    environment: dict[str, str],
) -> float:
    """What a function of this file prints in a process of its own."""
    call = f"{function.__name__}({subject.name!r}, {variant!r}, {batch})"
    script = f"from benchmarks.train_memory import {function.__name__}; {call}"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | environment,
    )
    return float(done.stdout.split()[-1])


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--only", default="", help="part of a network's name")
    options = parser.parse_args()
    print(machine())
    rows: list[Row] = []
    for subject in (s for s in SUBJECTS if options.only in s.name):
        for variant in VARIANTS:
            rows.append({"network": subject.name, "variant": variant})
            rows[-1] |= measured(subject, variant, options.batch, options.runs)
            print(rows[-1], flush=True)
    show("Peak memory of training, MiB", rows)
    if not options.only:
        write("train_memory", {"peaks": rows})


def measured(subject: Subject, variant: str, batch: int, runs: int) -> Row:
    """The three measures of one variant."""

    def median(environment: dict[str, str]) -> float:
        found = [fresh(process_here, subject, variant, batch, environment) for _ in range(runs)]
        return statistics.median(found)

    return {
        "tensors": fresh(tensors_here, subject, variant, batch, {}),
        "process": median({}),
        "returned": median(RETURNED),
    }


if __name__ == "__main__":
    main()
