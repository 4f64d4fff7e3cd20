"""Does the pruned model run, and is it right? nestify and two peers on the public zoo.

    python benchmarks/zoo_vs_peers.py [--limit 100] [--jobs 2] [--missing] [--tool T] [model ...]

Half of every width is removed from 86 models of ``tests/zoo`` (random weights): by torch-pruning
with ``GroupMagnitudeImportance(p=2)`` and nothing but the classifier ignored, no model treated by
hand; by nvidia-modelopt as the smallest net of a fastnas search space with halves of all widths; by
nestify at random positions of every elastic group. Each (model, tool) runs in a process
of its own under a limit of processor time, so that the load of the machine decides nothing. A
result is *exact* where the pruned model equals the original with
the removed positions silenced (``support/masking.py`` knows neither tool) to 1e-6 relative in
float64, *wrong* where it runs and differs, *unchanged* where nothing was removed. Tiny models from
``tests/patterns``, one for each awkward pattern that the peers are asked about, come after the zoo.

Needs the extras ``dev`` and ``bench``, and nvidia-modelopt for ``--tool modelopt``. Prints tables,
and writes each row to ``results/zoo_vs_peers.json`` as it is found, beside those of other models
and tools: a run that was stopped goes on with ``--missing``, and a tool may run in an environment
of its own.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import random
import resource
import signal
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from benchmarks.support.clock import RESULTS, Row, show, write
from benchmarks.support.masking import Kept, individual, masked_copy, positions
from nestify.support.closeness import relative_error
from tests.patterns.maps import MAPS
from tests.patterns.shapes import SHAPES
from tests.patterns.tokens import TOKENS
from tests.zoo.model import Arguments, ZooModel
from tests.zoo.timm_rows import TIMM
from tests.zoo.torchvision_rows import TORCHVISION
from tests.zoo.transformers_rows import TRANSFORMERS

NAME = "zoo_vs_peers"
SHARE = 0.5
SMALL = {**MAPS, **SHAPES, **TOKENS}
EXACT = 1e-6
_CAPTURED = {
    library: [model for model in rows if not model.not_captured]
    for library, rows in (("tv", TORCHVISION), ("timm", TIMM), ("hf", TRANSFORMERS))
}
MODELS: list[ZooModel] = [
    *_CAPTURED["tv"][:35],
    *_CAPTURED["timm"][::4][:33],
    *_CAPTURED["hf"][::2][:18],
]

_ASKED = (
    "ChannelShuffle",
    "SplitShuffle",
    "PermuteFlatten",
    "FlattenAfterPooling",
    "SqueezeExcite",
    "C2f",
    "UnevenSplit",
    "TorchAttention",
    "FusedQkv",
    "TwoGroups",
)


def _small(name: str) -> ZooModel:
    pattern = SMALL[name]
    return ZooModel(f"pattern/{name}", pattern.build, lambda batch: (pattern.example(batch), {}))


PATTERNS = [_small(name) for name in _ASKED]

Pruned = tuple[nn.Module, Kept]


# --- the tools ------------------------------------------------------------------------------------


def nestify_pruned(model: nn.Module, inputs: Arguments) -> Pruned:
    """Half of each elastic group, at random positions."""
    import nestify

    recipe = "fn3-channel{where=all}+fn3-neuron{where=all}+fn3-head{where=all}+fn3-path{where=all}"
    nested = nestify.transform(model, recipe, *inputs).eval()
    draw = random.Random(0)
    picks = {
        group.name: sorted(draw.sample(range(group.size), max(1, round(SHARE * group.size))))
        for group in nested.graph.groups
    }
    slim = nested.extract(picks, verify=False)
    keep = nested.keep({name: torch.tensor(positions) for name, positions in picks.items()})
    kept = {
        name: {d: keep.indices(expr) for d, expr in enumerate(dims) if not keep.is_full(expr)}
        for name, dims in nested.graph.tensor_dims.items()
    }
    aliases = nested.graph.capture.aliases
    every = {alias: kept[name] for alias, name in aliases.items() if name in kept}
    return slim, {name: dims for name, dims in {**kept, **every}.items() if dims}


def torch_pruning_pruned(model: nn.Module, inputs: Arguments) -> Pruned:
    """Its BasePruner in one step, with the classifier ignored, as its README does."""
    tp = importlib.import_module("torch_pruning")
    args, kwargs = inputs
    pruned = copy.deepcopy(model)
    ignored = classifiers(pruned, inputs)
    pruner = tp.pruner.BasePruner(
        pruned,
        args[0] if len(args) == 1 else (kwargs or list(args)),
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=SHARE,
        ignored_layers=ignored,
    )
    pruner.step()
    return pruned, positions(model, pruned)


def modelopt_pruned(model: nn.Module, inputs: Arguments) -> Pruned:
    """The smallest net of a fastnas search space in which every width it frees is whole or half."""
    nas = importlib.import_module("modelopt.torch.nas")
    convs = [f"nn.Conv{n}d" for n in (1, 2, 3)] + [f"nn.ConvTranspose{n}d" for n in (1, 2, 3)]
    norms = [f"nn.{kind}Norm{n}d" for kind in ("Batch", "Instance") for n in (1, 2, 3)]
    channels = {"channels_ratio": (SHARE, 1.0), "channel_divisor": 1}
    features = {"features_ratio": (SHARE, 1.0), "feature_divisor": 1}
    config = {
        **{conv: {**channels, "kernel_size": ()} for conv in convs},
        **dict.fromkeys(["nn.Linear", "nn.LayerNorm", "nn.SyncBatchNorm", *norms], features),
        "nn.GroupNorm": channels,
    }
    dynamic = nas.convert(copy.deepcopy(model), mode=[("fastnas", config)])
    nas.sample(dynamic, min)
    pruned = nas.export(dynamic)
    return pruned, positions(model, pruned)


def classifiers(model: nn.Module, inputs: Arguments) -> list[nn.Module]:
    """The layers whose results the model returns; its last layer where none is returned as is."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]
    made: list[tuple[nn.Module, Tensor]] = []
    hooks = [m.register_forward_hook(lambda m, _, out: made.append((m, out))) for m in layers]
    with torch.no_grad():
        args, kwargs = inputs
        leaves = pytree.tree_leaves(_plain(model(*args, **kwargs)))
    for hook in hooks:
        hook.remove()
    returned = [m for m, out in made if any(out is leaf for leaf in leaves)]
    return returned or [made[-1][0]]


def _plain(out: Any) -> Any:
    """The outputs of transformers are ordered dicts of their own kind."""
    return dict(out) if isinstance(out, dict) else out


TOOLS: dict[str, Callable[[nn.Module, Arguments], Pruned]] = {
    "nestify": nestify_pruned,
    "torch-pruning": torch_pruning_pruned,
    "modelopt": modelopt_pruned,
}


# --- one model ------------------------------------------------------------------------------------


def verdict(entry: ZooModel, tool: str) -> Row:
    """What became of one model: which stage failed, or how far it lies from the masked original."""
    model, inputs = entry.make()
    individual(model)
    args, kwargs = inputs
    before = sum(p.numel() for p in model.parameters())
    try:
        slim, kept = TOOLS[tool](model, inputs)
    except Exception as error:  # a tool may fail in any way; the table says which
        return {"outcome": "fails to prune", "note": f"{type(error).__name__}: {error}"[:200]}
    after = sum(p.numel() for p in slim.parameters())
    if after == before:
        return {"outcome": "unchanged"}
    with torch.no_grad():
        try:
            found = _plain(slim.eval()(*args, **kwargs))
        except Exception as error:
            return {"outcome": "does not run", "note": f"{type(error).__name__}: {error}"[:200]}
        wanted = _plain(masked_copy(model, kept)(*args, **kwargs))
        whole = _plain(model(*args, **kwargs))
    error = relative_error(wanted, found)
    return {
        "outcome": "exact" if error <= EXACT else "wrong",
        "error": error,
        "params left": after / before,
        "change": relative_error(whole, wanted),
    }


def in_a_process(entry: ZooModel, tool: str, limit: float) -> Row:
    """What a fresh interpreter found, or that it took too long or died."""
    command = [sys.executable, __file__, "--tool", tool, "--limit", str(limit), "--only"]
    done = subprocess.run([*command, entry.name], capture_output=True, text=True, check=False)
    if done.returncode == -signal.SIGXCPU:
        return {"outcome": "timeout"}
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"outcome"')]
    return json.loads(lines[-1]) if lines else {"outcome": "dies", "note": done.stderr[-200:]}


def known() -> list[Row]:
    """What the results file holds already."""
    path = RESULTS / f"{NAME}.json"
    return json.loads(path.read_text())["models"] if path.exists() else []


def summary(rows: list[Row], entries: list[ZooModel]) -> list[Row]:
    """A line a tool: how many of these models run, and what became of them."""
    names = {entry.name for entry in entries}
    mine = [row for row in rows if row["model"] in names]
    outcomes = sorted({row["outcome"] for row in mine})
    lines: list[Row] = []
    for tool in TOOLS:
        count = Counter(row["outcome"] for row in mine if row["tool"] == tool)
        if count:
            runs = count["exact"] + count["wrong"]
            each = {outcome: count[outcome] for outcome in outcomes}
            lines.append({"tool": tool, "models": sum(count.values()), "runs": runs, **each})
    return lines


def report(rows: list[Row]) -> None:
    """Print the tables."""
    show("What runs, and what is right: 86 models of the zoo", summary(rows, MODELS))
    show("Tiny models, one for each awkward pattern", summary(rows, PATTERNS))
    small = {entry.name: {"pattern": entry.name.partition("/")[2]} for entry in PATTERNS}
    for row in rows:
        if row["model"] in small:
            left = f", {row['params left']:.0%} left" if "params left" in row else ""
            small[row["model"]][row["tool"]] = row["outcome"] + left
    show("Pattern by pattern", list(small.values()))
    columns = ("model", "tool", "outcome", "error", "note")
    bad = [row for row in rows if row["outcome"] != "exact"]
    show("All that is not exact", [{key: row.get(key, "") for key in columns} for row in bad])


def main() -> None:
    """Run every model under every tool; print and write what became of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help="names, or parts of them; all if none is given")
    parser.add_argument("--tool", choices=TOOLS, action="append")
    parser.add_argument("--limit", type=float, default=100.0, help="processor seconds a model")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--missing", action="store_true", help="only what the results file lacks")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    every = [*PATTERNS, *MODELS]
    if options.only:
        seconds = round(options.limit)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
        entry = next(model for model in every if model.name == options.only)
        print(json.dumps(verdict(entry, options.tool[0])))
        return
    tools = options.tool or ["nestify", "torch-pruning"]
    wanted = [m for m in every if not options.models or any(n in m.name for n in options.models)]
    found: dict[tuple[str, str], Row] = {(row["model"], row["tool"]): row for row in known()}
    jobs = [(entry, tool) for entry in wanted for tool in tools]
    if options.missing:
        jobs = [job for job in jobs if (job[0].name, job[1]) not in found]

    def judged(job: tuple[ZooModel, str]) -> Row:
        return in_a_process(*job, options.limit)

    with ThreadPoolExecutor(options.jobs) as pool:  # each thread waits for a process
        results = pool.map(judged, jobs)
        for (entry, tool), result in zip(jobs, results, strict=True):
            row = {"model": entry.name, "tool": tool, **result, "limit s": options.limit}
            print(row, flush=True)
            found[entry.name, tool] = row
            rows = [found[key] for key in sorted(found)]
            lines = {"zoo": summary(rows, MODELS), "patterns": summary(rows, PATTERNS)}
            write(NAME, {**lines, "models": rows})
    report([found[key] for key in sorted(found)])


if __name__ == "__main__":
    main()
