"""What the scores of a parent's children cost with and without starting where they differ.

    python benchmarks/evaluation.py [--repetitions 5] [--threads 2] [--images 256] [--children 12]

A child narrows one unit of the parent, as a step of a search does; the units are spread over the
network. A score is the accuracy of the sliced network on random images, one batch of 64 at a time,
each time in new tensors; where norms are re-estimated first, on two batches of 64. In turns in one
process: plain, and reusing what the parent left. Ratios are of medians over the repetitions. Every
score is compared: both ways give the same. Writes ``results/evaluation.json``.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

import nestify
from benchmarks.support.clock import Row, machine, seconds, show, write
from benchmarks.support.training_networks import CLASSES, SUBJECTS, Subject

PARENT = 0.6  # the share of every unit that the parent keeps
NARROWER = 0.8
BATCH = 64


class Case:
    """A nested network, a parent, its children, and the data of their scores."""

    def __init__(self, subject: Subject, images: int, children: int, calibrated: bool) -> None:
        torch.manual_seed(0)
        shape = subject.batch[1:]
        model = subject.model()
        self.nested = nestify.transform(model, subject.recipe, (torch.randn(2, *shape),)).eval()
        self.parent = self.nested.space.at(PARENT)
        units = self.nested.space.units
        chosen = [units[i * len(units) // children] for i in range(min(children, len(units)))]
        chosen = list(dict.fromkeys(units if len(units) <= children else chosen))
        self.children = [
            nestify.Subnet(
                dict(self.parent) | {u.name: u.choices.at_most(NARROWER * self.parent[u.name])}
            )
            for u in chosen
        ]
        self.x, self.y = torch.randn(images, *shape), torch.randint(CLASSES, (images,))
        calibration = torch.randn(2, BATCH, *shape)
        self.calibration: Sequence[Tensor] = list(calibration) if calibrated else []
        self.has_norms = any(isinstance(m, nn.BatchNorm2d) for m in self.nested.modules())

    def score(self, subnet: nestify.Subnet) -> float:
        """The share of right answers, after re-estimating the norms where that is asked for."""
        if self.calibration:
            self.nested.calibrate(subnet, [x.clone() for x in self.calibration])
        right = 0
        with self.nested.activate(subnet), torch.no_grad():
            for start in range(0, len(self.x), BATCH):
                logits = self.nested(self.x[start : start + BATCH].clone())
                right += int((logits.argmax(1) == self.y[start : start + BATCH]).sum())
        return right / len(self.x)

    def forget(self) -> None:
        """Drop the statistics of subnets, so that none is found in the place of another."""
        self.nested.train().eval()


def measure(case: Case, repetitions: int, limit_bytes: int) -> Row:
    """Both ways in turns; the scores must be the same."""
    plain: list[float] = []
    reusing: list[float] = []
    held, skipped = 0, 0.0
    for _ in range(repetitions):
        scores: dict[bool, list[float]] = {False: [], True: []}
        for reuses in (False, True):
            case.forget()
            context: Any = nullcontext()
            if reuses:
                context = case.nested.reusing(limit_bytes=limit_bytes)
            with context as reuse:
                scores[reuses].append(case.score(case.parent))

                def children(found: list[float] = scores[reuses]) -> None:
                    found.extend(case.score(child) for child in case.children)

                before = (reuse.steps_run, reuse.steps_skipped) if reuse is not None else (0, 0)
                spent = seconds(children)
                (reusing if reuses else plain).append(spent)
                if reuse is not None:
                    run = reuse.steps_run - before[0]
                    left_out = reuse.steps_skipped - before[1]
                    skipped, held = left_out / (run + left_out), reuse.bytes_held
        if scores[False] != scores[True]:
            raise AssertionError(f"reuse changed a score: {scores}")
    each = 1e3 / len(case.children)
    return {
        "children": len(case.children),
        "plain ms": each * statistics.median(plain),
        "reusing ms": each * statistics.median(reusing),
        "speed-up": statistics.median(plain) / statistics.median(reusing),
        "steps left out": skipped,
        "held MiB": held / 2**20,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--children", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=int, default=1024, help="MiB that may be held")
    parser.add_argument("--only", default="", help="part of a network's name")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    print(machine())
    rows: list[Row] = []
    for subject in (s for s in SUBJECTS if options.only in s.name):
        for calibrated in (False, True):
            case = Case(subject, options.images, options.children, calibrated)
            if calibrated and not case.has_norms:
                continue
            found = measure(case, options.repetitions, options.limit << 20)
            rows.append({"network": subject.name, "norms re-estimated": calibrated, **found})
            print(rows[-1], flush=True)
    show("The scores of a parent's children", rows)
    if not options.only:
        write("evaluation", {"limit MiB": options.limit, "images": options.images, "rows": rows})


if __name__ == "__main__":
    main()
