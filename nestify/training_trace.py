"""What differs in training: the arguments of each call, found by a second trace where the code
decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from typing import Any, NamedTuple

from torch import fx, nn

from nestify.errors import CaptureError
from nestify.lowering import lower
from nestify.modes import has_own_switch
from nestify.rules import bind_arguments, op_name
from nestify.tracing import align, calls_of, export_program, source_line
from nestify.trees import submodule

__all__ = ["TrainingArguments", "training_arguments"]

_SWITCHES = ("train", "training", "use_input_stats")
_MARKER = "nestify::stochastic"


class TrainingArguments(NamedTuple):
    """Arguments whose value differs in training, and what training does beyond arguments."""

    values: Mapping[tuple[str, str], Any]
    notes: tuple[str, ...]


def training_arguments(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    graph: fx.Graph,
    readers: Set[nn.Module],
) -> TrainingArguments:
    """Compare ``graph``, traced in eval, with what the ``readers`` of the mode do in training.

    Call it where the model is in eval mode, with its stochastic modules marked.
    """
    marked = {submodule(model, str(n.args[1])) for n in graph.nodes if op_name(n.target) == _MARKER}
    own = {module for module in readers if has_own_switch(module)}
    values = dict(_switches(model, graph, own))
    if not readers - own - marked:
        return TrainingArguments(values, ())
    for module in model.modules():
        module.training = module not in marked and not has_own_switch(module)
    try:
        other = lower(model, export_program(model, args, kwargs)).graph
    except CaptureError as error:
        values |= dict(_switches(model, graph, readers))
        return TrainingArguments(values, (f"in training mode, {error}",))
    finally:
        model.eval()
    found = _compare(graph, other)
    return TrainingArguments(values | dict(found.values), found.notes)


def _switches(
    model: nn.Module, graph: fx.Graph, modules: Set[nn.Module]
) -> Iterator[tuple[tuple[str, str], Any]]:
    """The mode arguments of the calls that ``modules`` make."""
    for node in graph.nodes:
        if node.op == "call_function" and submodule(model, str(node.meta["path"])) in modules:
            bound = bind_arguments(node)
            yield from (((node.name, key), True) for key in _SWITCHES if bound.get(key) is False)


def _compare(graph: fx.Graph, other: fx.Graph) -> TrainingArguments:
    pairs, eval_only, train_only = align(graph, other)
    train_only = [node for node in train_only if not _counts_batches(node)]
    values = {(n.name, key): value for n, twin in pairs for key, value in _differences(n, twin)}
    notes = (
        *_notes(train_only, _active(graph), "does in training only", "leaves it out"),
        *_notes(eval_only, _active(other), "does in eval only", "does it in training too"),
    )
    return TrainingArguments(values, notes)


def _differences(node: fx.Node, twin: fx.Node) -> Iterator[tuple[str, Any]]:
    """Number, flag and text arguments that the twin spells differently."""
    theirs = bind_arguments(twin)
    for name, value in bind_arguments(node).items():
        other = theirs.get(name)
        plain = isinstance(value, bool | int | float | str) and type(other) is type(value)
        if plain and other != value:
            yield name, other


def _counts_batches(node: fx.Node) -> bool:
    """A write to ``num_batches_tracked``: a BatchNorm module counts by itself."""
    return any(
        source.op == "get_attr" and str(source.target).endswith("num_batches_tracked")
        for source in node.all_input_nodes
    )


def _active(graph: fx.Graph) -> set[str]:
    """The modules that made calls, and those around them."""
    found = {""}
    for path in {str(node.meta["path"]) for node in calls_of(graph)}:
        parts = path.split(".")
        found.update(".".join(parts[: i + 1]) for i in range(len(parts)))
    return found


def _notes(nodes: list[fx.Node], active: Set[str], when: str, consequence: str) -> Iterator[str]:
    """One note a line of code; one a module where all of it runs in one mode only."""
    places: dict[tuple[str, str], tuple[str, list[str]]] = {}
    for node in nodes:
        path, line = _outermost(str(node.meta["path"]), active), source_line(node)
        _, ops = places.setdefault((path, line if path in active else ""), (line, []))
        ops.append(op_name(node.target))
    for (path, _), (line, ops) in places.items():
        where = f"module {path!r}" if path else "the model"
        listed = ", ".join(dict.fromkeys(ops))
        yield f"{where} ({line or 'unknown line'}) {when}: {listed}; the nested model {consequence}"


def _outermost(path: str, active: Set[str]) -> str:
    """The outermost module on ``path`` that is not active, else the one at ``path``."""
    parts = path.split(".")
    around = (".".join(parts[: i + 1]) for i in range(len(parts)))
    return next((prefix for prefix in around if prefix not in active), path)
