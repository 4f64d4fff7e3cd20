"""docs/zoo.md: what of each model is elastic, one row a model, so that a change shows in a diff."""

from __future__ import annotations

import fcntl
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median

from nestify.dims.reasons import ADVICE
from nestify.nested.model import NestedModel
from tests.zoo.model import ZooModel

FILE = Path(__file__).parents[2] / "docs" / "zoo.md"
COLUMNS = (
    "model",
    "parameters",
    "elastic",
    "MACs elastic",
    "groups",
    "units",
    "blocks",
    "free batch",
    "fixed dims",
    "what fixes them",
)
_UNAVOIDABLE = ("input", "output")
_INTRO = """# What is elastic in the zoo

One row a model of torchvision, timm, transformers, ultralytics and diffusers, with random weights,
at the sizes of `tests/zoo`. **elastic** and **MACs elastic** are the shares of its parameters and
of its MACs that touch at least one elastic dim; **groups** are dims that are sliced together,
**units** the choices of `{recipe}`, **blocks** the residual
blocks that may be dropped. **fixed dims** are sizes of parameters that stay as they are; the last
column says by which op and for which kind of reason, but for those of the model's input and output.
`nestify inspect` names the source line of each.

`make zoo ARGS=--update-golden` writes this file; `make zoo` checks all of it, `make test` a sample.
"""


def row(model: ZooModel, nested: NestedModel) -> str:
    """One line of the table."""
    graph = nested.graph
    kinds = Counter(
        f"{fixed.op} ({fixed.kind})" for fixed in graph.fixed if fixed.kind not in _UNAVOIDABLE
    )
    cells = (
        model.name,
        f"{sum(tensor.numel() for _, tensor in graph.parameters()):,}",
        f"{graph.coverage.params:.4f}",
        f"{graph.coverage.macs:.4f}",
        str(len(graph.groups)),
        str(len(nested.space.units)),
        str(len(graph.blocks)),
        "no" if graph.batch is None else "yes",
        str(len(graph.fixed)),
        ", ".join(f"{name} × {n}" for name, n in kinds.most_common()),
    )
    return _line(cells)


def rows() -> dict[str, str]:
    """The lines of the file by the name of the model."""
    if not FILE.exists():
        return {}
    lines = [line for line in FILE.read_text().splitlines() if line.startswith("| ")]
    found = {_cells(line)[0]: line for line in lines if len(_cells(line)) == len(COLUMNS)}
    return {name: line for name, line in found.items() if name not in ("model", "---")}


def update(model: ZooModel, line: str, zoo: Iterable[ZooModel], recipe: str) -> None:
    """Put a line in its place in the file; other processes may do so at the same time."""
    FILE.parent.mkdir(exist_ok=True)
    with FILE.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        found = rows() | {model.name: line}
        FILE.write_text(text(found, tuple(zoo), recipe))


def text(lines: Mapping[str, str], zoo: tuple[ZooModel, ...], recipe: str) -> str:
    """The whole file, from its rows and from what is known of the models."""
    kept = {model.name: lines[model.name] for model in zoo if model.name in lines}
    shares = [float(_cells(line)[2]) for line in kept.values()]
    parts = [_INTRO.format(recipe=recipe)]
    if shares:
        parts.append(
            f"{len(shares)} models: the median share of elastic parameters is "
            f"{median(shares):.4f}, the least {min(shares):.4f}; "
            f"{sum(share < 0.8 for share in shares)} lie below 0.80.\n"
        )
    parts.append(_table(COLUMNS, kept.values()))
    low = [model for model in zoo if model.low]
    if low:
        parts.append("## Why less than 0.80 is elastic\n")
        parts.append(_table(("model", "reason"), (_line((m.name, m.low)) for m in low)))
    refused = [model for model in zoo if model.not_captured]
    if refused:
        parts.append("## What torch.export cannot capture\n")
        told = (_line((m.name, m.not_captured)) for m in refused)
        parts.append(_table(("model", "its error"), told))
    parts.append("## What would free a dim\n")
    advice = (_line((kind, advice)) for kind, advice in ADVICE.items() if kind != "window")
    parts.append(_table(("kind of reason", "what would free it"), advice))
    return "\n".join(parts)


def _table(head: Iterable[str], lines: Iterable[str]) -> str:
    names = tuple(head)
    return "\n".join([_line(names), _line(["---"] * len(names)), *lines, ""])


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]
