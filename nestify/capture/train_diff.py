"""What differs in training: the arguments of each call, found by a second trace where the code
decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any, NamedTuple, cast

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from nestify.capture.diff import align, calls_of
from nestify.capture.example_inputs import in_words
from nestify.capture.export_program import export_program
from nestify.capture.lowering import Lowered, lower
from nestify.capture.source_lines import source_line
from nestify.capture.train_mode import has_own_switch
from nestify.errors import CaptureError
from nestify.rules import STOCHASTIC, bind_arguments, facts_of, mode_argument, op_name
from nestify.support.module_state import with_own_train
from nestify.support.module_tree import submodule

__all__ = ["Traced", "TrainingArguments", "training_arguments"]


class Traced(NamedTuple):
    """A trace to compare: its graph, its tensors, which of them are the model's own by ``names``,
    and what it returns.
    """

    graph: fx.Graph
    tensors: Mapping[str, torch.Tensor]
    names: Set[str]
    spec: pytree.TreeSpec

    @classmethod
    def of(cls, lowered: Lowered, program: ExportedProgram) -> Traced:
        """What was lowered of an exported program."""
        spec = cast(pytree.TreeSpec, program.call_spec.out_spec)
        return cls(lowered.graph, lowered.tensors, lowered.aliases.keys(), spec)

    @property
    def results(self) -> list[Any]:
        """The flat outputs: nodes, and what is no tensor."""
        return list(cast(Any, self.graph.output_node().args[0]))

    @property
    def outputs(self) -> list[Any]:
        """The flat outputs by example."""
        return [node.meta["val"] if _is_node(node) else node for node in self.results]


class TrainingArguments(NamedTuple):
    """Arguments whose value differs in training, and what training does beyond arguments."""

    values: Mapping[tuple[str, str], Any]
    notes: tuple[str, ...]


def training_arguments(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    traced: Traced,
    readers: Set[nn.Module],
) -> TrainingArguments:
    """Compare what was ``traced`` in eval with what the ``readers`` of the mode do in training.

    Call it where the model is in eval mode, with its stochastic modules marked.
    """
    graph = traced.graph
    marked = {
        submodule(model, str(n.args[1])) for n in graph.nodes if op_name(n.target) == STOCHASTIC
    }
    own = {module for module in readers if has_own_switch(module)}
    values = dict(_switches(model, graph, own))
    if not (readers | set(with_own_train(model))) - own - marked:
        return TrainingArguments(values, ())
    model.train()  # which may do more than set the mode
    for module in model.modules():
        module.training = module not in marked and not has_own_switch(module)
    try:
        program = export_program(model, args, kwargs)
        other = Traced.of(lower(model, program), program)
    except CaptureError as error:
        values |= dict(_switches(model, graph, readers))
        return TrainingArguments(values, (f"in training mode, {error}",))
    finally:
        model.eval()
    found = _compare(traced, other)
    return TrainingArguments(values | dict(found.values), found.notes)


def _switches(
    model: nn.Module, graph: fx.Graph, modules: Set[nn.Module]
) -> Iterator[tuple[tuple[str, str], Any]]:
    """The mode arguments of the calls that ``modules`` make."""
    for node in graph.nodes:
        if node.op == "call_function" and submodule(model, str(node.meta["path"])) in modules:
            switch = mode_argument(node)
            if switch and bind_arguments(node)[switch] is False:
                yield (node.name, switch), True


def _compare(here: Traced, there: Traced) -> TrainingArguments:
    graph, other = here.graph, there.graph
    pairs, eval_only, train_only = align(graph, other)
    train_only = [node for node in train_only if not _counts_batches(node)]
    values = {(n.name, key): value for n, twin in pairs for key, value in _differences(n, twin)}
    alone = {*eval_only, *train_only}
    reads = _Reads(here, there, pairs, alone)
    notes = (
        *_notes(train_only, _active(graph), "does in training only", "leaves it out"),
        *_notes(eval_only, _active(other), "does in eval only", "does it in training too"),
        *_notes(
            [node for node, twin in pairs if reads.differ(node, twin)],
            _active(graph),
            "computes with other tensors or sizes in training",
            "computes with those of eval in training too",
        ),
        *_output_notes(here, there, reads),
    )
    return TrainingArguments(values, notes)


class _Reads:
    """Which operands are the same in two traces."""

    def __init__(
        self,
        here: Traced,
        there: Traced,
        pairs: Sequence[tuple[fx.Node, fx.Node]],
        alone: Set[fx.Node],
    ) -> None:
        self.here, self.there, self.alone = here, there, alone
        self.twins = dict(pairs)

    def differ(self, node: fx.Node, twin: fx.Node) -> bool:
        """Whether two calls read different tensors, or spell different sizes."""
        mine, theirs = bind_arguments(node), bind_arguments(twin)
        return any(not self.same(mine[name], theirs.get(name)) for name in mine)

    def same(self, mine: Any, theirs: Any) -> bool:
        """Whether two arguments mean the same; numbers by themselves are compared elsewhere, and
        what one mode alone computes is noted where it does.
        """
        if isinstance(mine, list | tuple) and isinstance(theirs, list | tuple):
            mine, theirs = cast(Sequence[Any], mine), cast(Sequence[Any], theirs)
            return len(mine) == len(theirs) and all(
                self.same(*pair) and (_is_node(pair[0]) or pair[0] == pair[1])
                for pair in zip(mine, theirs, strict=True)
            )
        if not (_is_node(mine) and _is_node(theirs)):
            plain = isinstance(mine, _PLAIN) and type(mine) is type(theirs)
            return plain or mine == theirs
        mine, theirs = _source(cast(fx.Node, mine)), _source(cast(fx.Node, theirs))
        if mine in self.alone or theirs in self.alone or self.twins.get(mine) is theirs:
            return True
        if mine.op != theirs.op or mine.op == "call_function":
            return False
        names = str(mine.target), str(theirs.target)
        if mine.op == "placeholder" or any(name in self.here.names for name in names):
            return names[0] == names[1]
        a, b = self.here.tensors[names[0]], self.there.tensors[names[1]]  # numbered anew
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)


_PLAIN = (bool, int, float, str)


def _is_node(value: Any) -> bool:
    return isinstance(value, fx.Node)


def _source(node: fx.Node) -> fx.Node:
    """What a copy or an alias was made of."""
    while node.op == "call_function" and facts_of(node.target).copies:
        node = cast(fx.Node, node.args[0])
    return node


def _output_notes(here: Traced, there: Traced, reads: _Reads) -> Iterator[str]:
    mine, theirs = (in_words(pytree.tree_unflatten(t.outputs, t.spec)) for t in (here, there))
    if here.spec != there.spec:
        yield (
            f"the model returns {theirs} in training and {mine} in eval; the nested model returns "
            "what eval does in training too: take a loss of these, or train the outputs that are "
            "missing beside it"
        )
    elif not reads.same(here.results, there.results):
        yield (
            "the model returns other tensors in training than in eval; the nested model returns "
            "those of eval in training too"
        )


def _differences(node: fx.Node, twin: fx.Node) -> Iterator[tuple[str, Any]]:
    """Number, flag and text arguments that the twin spells differently."""
    theirs = bind_arguments(twin)
    for name, value in bind_arguments(node).items():
        other = theirs.get(name)
        plain = isinstance(value, _PLAIN) and type(other) is type(value)
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
