"""One chunk of a campaign, a worker's task: models grown, checked, and asked in onnxruntime."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from nestify.support.atomic_files import publish_files, staging
from tests.fuzz.build import script
from tests.fuzz.bundles import (
    Network,
    Verdict,
    at_another_batch,
    in_onnxruntime,
    native_output_silenced,
)
from tests.fuzz.checks import Case, Failure, check
from tests.fuzz.forms import Form
from tests.fuzz.grow import grow
from tests.fuzz.shrink import shrink
from tests.fuzz.spec import Spec
from tests.fuzz.table import form_table, portable

__all__ = ["Mismatch", "Settings", "Tally", "model_spec", "run_chunk"]

_BATCH_EVERY = 4  # of the models for onnxruntime, those that it is asked of at another batch
_lacking: set[str] = set()  # ops without an ONNX form, learned by this worker


@dataclass(frozen=True)
class Settings:
    """What decides the models of a campaign, and what is asked of them."""

    seed: int = 0
    size: int = 8
    focus: tuple[str, ...] = ()
    onnx_every: int = 8
    subnets: int = 2
    scripts: str = "fuzz-failures"


@dataclass(frozen=True)
class Mismatch:
    """A model that breaks a law, and the script that shows it."""

    index: int
    law: str
    message: str
    steps: int
    script: str


@dataclass
class Tally:
    """What was seen; the sum of two tallies is that of both."""

    models: int = 0
    outcomes: Counter[str] = field(default_factory=Counter[str])
    ops: Counter[str] = field(default_factory=Counter[str])
    elastic: Counter[str] = field(default_factory=Counter[str])
    pairs: Counter[str] = field(default_factory=Counter[str])
    onnx: Counter[str] = field(default_factory=Counter[str])
    no_form: Counter[str] = field(default_factory=Counter[str])
    refusals: Counter[str] = field(default_factory=Counter[str])
    groups: int = 0
    comparisons: int = 0
    cpu_seconds: float = 0.0
    mismatches: list[Mismatch] = field(default_factory=list[Mismatch])
    doubtful: list[str] = field(default_factory=list[str])

    def add(self, other: Tally) -> None:
        """Add what another tally counted."""
        for name, value in vars(other).items():
            mine = getattr(self, name)
            if isinstance(mine, Counter):
                mine.update(value)
            elif isinstance(mine, list):
                mine.extend(value)
            else:
                setattr(self, name, mine + value)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        plain = {name: dict(v) if isinstance(v, Counter) else v for name, v in vars(self).items()}
        return {**plain, "mismatches": [asdict(found) for found in self.mismatches]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Tally:
        """The tally of :meth:`to_dict`."""
        tally = cls()
        for name, value in data.items():
            mine = getattr(tally, name)
            if isinstance(mine, Counter):
                mine.update(value)
            elif name == "mismatches":
                mine.extend(Mismatch(**item) for item in value)
            elif isinstance(mine, list):
                mine.extend(value)
            else:
                setattr(tally, name, value)
        return tally


def run_chunk(settings: Settings, indices: Sequence[int]) -> Tally:
    """Grow and check these models, and shrink what fails."""
    start = time.process_time()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    forms = form_table()
    tally = Tally(models=len(indices))
    asked: list[tuple[int, Spec, Case]] = []
    for index in indices:
        spec, case = _one(settings, index, forms, tally)
        if case.failure is not None:
            tally.mismatches.append(_shrunk(settings, index, spec, case.failure, forms))
        elif case.slim is not None and _for_onnx(settings, index):
            asked.append((index, spec, case))
    networks = [Network(case.slim, case.inputs) for _, _, case in asked if case.slim is not None]
    with native_output_silenced():
        verdicts = in_onnxruntime(networks, _lacking) if networks else []
    for (index, spec, _), verdict in zip(asked, verdicts, strict=True):
        _onnx(settings, index, spec, verdict, forms, tally)
    for (index, _, case), network in zip(asked, networks, strict=True):
        if index % (_BATCH_EVERY * settings.onnx_every) == 0:
            with native_output_silenced():
                _other_batch(index, at_another_batch(network, case.other), tally)
    tally.cpu_seconds = time.process_time() - start
    torch.set_num_threads(threads)
    return tally


def model_spec(
    settings: Settings, index: int, forms: Mapping[str, Form]
) -> tuple[Spec, Counter[str]]:
    """Model ``index`` of a campaign; it depends on nothing else."""
    refused = [name for name in forms if not portable(name)]
    grown = grow(
        settings.seed,
        index,
        forms,
        size=settings.size,
        focus=settings.focus,
        without=refused if _for_onnx(settings, index) else (),
    )
    return grown.spec, Counter(grown.refusals)


def _for_onnx(settings: Settings, index: int) -> bool:
    """Whether a model is one for onnxruntime; an export costs more than all else together."""
    return bool(settings.onnx_every) and index % settings.onnx_every == 0


def _one(
    settings: Settings, index: int, forms: Mapping[str, Form], tally: Tally
) -> tuple[Spec, Case]:
    spec, refusals = model_spec(settings, index, forms)
    case = check(spec, forms, subnets=settings.subnets)
    tally.outcomes[case.outcome.partition(":")[0]] += 1
    tally.refusals.update(_kinds(refusals))
    if case.outcome not in ("checked", "nothing is elastic", "failed"):
        tally.doubtful.append(f"model {index}: {case.outcome}")
    if case.outcome == "checked":
        tally.groups += case.groups
        tally.comparisons += case.comparisons
        tally.ops.update({op for op, _ in case.calls})
        tally.elastic.update(case.elastic)
        tally.pairs.update({f"{p} > {op}" for op, producers in case.calls for p in producers})
    return spec, case


def _kinds(refusals: Counter[str]) -> Counter[str]:
    """Refusals by kind: what torch says depends on the sizes."""
    kinds = Counter[str]()
    for text, count in refusals.items():
        kinds["torch refuses the call" if text.startswith("torch") else text] += count
    return kinds


def _onnx(
    settings: Settings,
    index: int,
    spec: Spec,
    verdict: Verdict,
    forms: Mapping[str, Form],
    tally: Tally,
) -> None:
    tally.onnx[verdict.outcome] += 1
    if verdict.outcome == "no form":
        tally.no_form[verdict.detail[:160]] += 1
    elif verdict.outcome == "different":
        failure = Failure("onnxruntime", verdict.detail, verdict.error)
        tally.mismatches.append(_shrunk(settings, index, spec, failure, forms))
    elif verdict.outcome == "rounding":
        tally.doubtful.append(f"model {index}: onnxruntime {verdict.detail}")


def _other_batch(index: int, verdict: Verdict, tally: Tally) -> None:
    """Count a verdict at another batch; a difference has no script of its own."""
    tally.onnx[f"{verdict.outcome} at another batch"] += 1
    if verdict.outcome == "different":
        law = "onnxruntime at another batch"
        tally.mismatches.append(Mismatch(index, law, verdict.detail, 0, "(none)"))
    elif verdict.outcome == "rounding":
        tally.doubtful.append(f"model {index}: at another batch {verdict.detail}")


def _shrunk(
    settings: Settings, index: int, spec: Spec, failure: Failure, forms: Mapping[str, Form]
) -> Mismatch:
    def breaks(candidate: Spec) -> bool:
        case = check(candidate, forms, subnets=settings.subnets)
        if failure.law != "onnxruntime":
            return case.failure is not None and case.failure.law == failure.law
        if case.slim is None:
            return False
        with native_output_silenced():
            (verdict,) = in_onnxruntime([Network(case.slim, case.inputs)], _lacking)
        return verdict.outcome == "different"

    budget = 40 if failure.law == "onnxruntime" else 250
    small = shrink(spec, forms, breaks, budget)
    headline = (
        f"Model {index} of seed {settings.seed}, shrunk from {len(spec.steps)} calls to "
        f"{len(small.steps)}.\n{failure.law}: {failure.message}"
    )
    name = f"seed{settings.seed}-model{index}.py"
    path = Path(settings.scripts) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with staging(path) as folder:
        (folder / name).write_text(script(small, forms, headline), encoding="utf-8")
        publish_files(folder, [name], path.parent)
    return Mismatch(index, failure.law, failure.message, len(small.steps), str(path))
