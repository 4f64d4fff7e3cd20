"""The body of ``forward``: straight code from a graph, with names that come and go like a person's.

A value takes over the variable of its first input when that input is not needed any more, else one
that fell free, else a new one: chains read ``x = ...; x = ...``, branches ``x1``, and nothing stays
in memory longer than in the graph.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch

from nestify.capture.autocast import ENTER, EXIT
from nestify.emit.call import pytree, unique
from nestify.emit.source.literals import identifier, literal
from nestify.emit.source.op_source import call_source, is_size
from nestify.errors import UsageError
from nestify.graph.fixed_batch import ASSERT

# Names that the file uses itself; an input of that name gets an underscore.
RESERVED = frozenset(
    "self torch nn F math operator json Path Group Model load Tensor max min int float".split()
)
_INDENT = "    "
# Checks of the exporter on its own assumptions: no value, no effect on the result.
_CHECKS = ("aten._assert", "aten.sym_constrain_range")


@dataclass(frozen=True)
class Forward:
    """The parameters, the statements and the result of a forward function, as source."""

    parameters: list[str]
    statements: list[str]
    result: str


@dataclass(frozen=True)
class _Leaf:
    source: str


def forward_of(
    graph: torch.fx.Graph, reach: Callable[[str], str], *, literal_ops: bool = False
) -> Forward:
    """The forward function of a graph; ``reach`` gives the expression for a module or tensor name.

    Raises:
        UsageError: a node has no spelling.
    """
    inputs, parameters, unpacking = _inputs(graph)
    names = _Names(graph, inputs, reach)
    statements = list(unpacking)
    blocks: list[str] = []  # the heads of those that are open
    conditions = _conditions(graph)
    for node in graph.nodes:
        if node in conditions:
            continue
        if node.target is ASSERT and node.args[0] in conditions:
            statements.append(_INDENT * len(blocks) + _assertion(node, conditions, names.of))
            continue
        if node.op in ("placeholder", "output", "get_attr") or _is_check(node):
            continue
        if node.target is ENTER:
            blocks.append(_INDENT * len(blocks) + _autocast(*node.args, name_of=names.of))
            statements.append(blocks[-1])
            continue
        if node.target is EXIT:
            if statements[-1] == blocks.pop():  # nothing is left in it
                statements.pop()
            continue
        if node.op == "call_module":
            shown = [literal(a, names.of) for a in node.args]
            shown += [f"{key}={literal(value, names.of)}" for key, value in node.kwargs.items()]
            source = f"{reach(str(node.target))}({', '.join(shown)})"
        else:
            source = call_source(node, names.of, literal_ops=literal_ops)
        statement = f"{names.take(node)} = {source}" if node.users else source
        statements.append(_INDENT * len(blocks) + statement)
    return Forward(parameters, statements, _result(graph, names.of))


def _autocast(
    device_type: Any, dtype: Any, enabled: Any, cache: Any, *, name_of: Callable[..., str]
) -> str:
    said = {"dtype": dtype, "enabled": enabled, "cache_enabled": cache}
    shown = [literal(device_type, name_of)]
    shown += [f"{name}={literal(value)}" for name, value in said.items() if value is not None]
    return f"with torch.autocast({', '.join(shown)}):"


class _Names:
    """Variables for the values of a graph, handed out in order."""

    def __init__(
        self,
        graph: torch.fx.Graph,
        inputs: Mapping[torch.fx.Node, str],
        reach: Callable[[str], str],
    ) -> None:
        self._names = dict(inputs)
        self._reach = reach
        self._used = {*inputs.values(), *RESERVED}
        self._free: set[str] = set()
        self._last: dict[torch.fx.Node, torch.fx.Node] = {}
        for node in graph.nodes:
            self._last |= dict.fromkeys(node.all_input_nodes, node)

    def of(self, node: torch.fx.Node) -> str:
        """The expression for a value that was computed before."""
        return self._reach(str(node.target)) if node.op == "get_attr" else self._names[node]

    def take(self, node: torch.fx.Node) -> str:
        """The variable for a new value, after its inputs were read."""
        if is_size(node):
            name = self._new("size")
        else:
            dead = self._dead_inputs(node)
            self._free |= {self._names[one] for one in dead if one.op != "placeholder"}
            # An input of forward is taken over by the chain that begins with it, and by no other.
            chain = self._names[dead[0]] if dead and dead[0] == _first(node) else ""
            name = chain or min(self._free, key=_rank, default="") or self._new("x")
            self._free.discard(name)
        self._used.add(name)
        self._names[node] = name
        return name

    def _dead_inputs(self, node: torch.fx.Node) -> list[torch.fx.Node]:
        inputs = [one for one in node.all_input_nodes if one in self._names and not is_size(one)]
        return [one for one in inputs if self._last[one] is node]

    def _new(self, base: str) -> str:
        return next(name for i in count() if (name := f"{base}{i or ''}") not in self._used)


def _first(node: torch.fx.Node) -> torch.fx.Node | None:
    return next((one for one in node.all_input_nodes if one.op != "get_attr"), None)


def _rank(name: str) -> tuple[int, str]:
    return len(name), name


def _inputs(graph: torch.fx.Graph) -> tuple[dict[torch.fx.Node, str], list[str], list[str]]:
    """Names of the placeholders, the parameters of forward, and the statements that unpack
    nested ones.
    """
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    info: Any = getattr(graph._codegen, "pytree_info", None)  # pyright: ignore[reportPrivateUsage]
    if info is None:
        names = _safe([str(node.target) for node in placeholders])
        parameters = [_parameter(n, name) for n, name in zip(placeholders, names, strict=True)]
        return dict(zip(placeholders, names, strict=True)), parameters, []
    return _nested_inputs(placeholders, info)


def _nested_inputs(
    placeholders: list[torch.fx.Node], info: Any
) -> tuple[dict[torch.fx.Node, str], list[str], list[str]]:
    spec = info.in_spec
    args, kwargs = pytree.tree_unflatten([_Leaf("")] * spec.num_leaves, spec)
    roots = _safe([*list(info.orig_args)[: len(args)], *kwargs])
    names: dict[torch.fx.Node, str] = {}
    unpacking: list[str] = []
    leaves: list[tuple[str, tuple[Any, ...]]] = []
    for root, value in zip(roots, [*args, *kwargs.values()], strict=True):
        leaves += [(root, path) for path, _ in pytree.tree_flatten_with_path(value)[0]]
    for node, (root, path) in zip(placeholders, leaves, strict=True):
        names[node] = root
        if path:
            key = str(getattr(path[-1], "key", ""))
            base = key if identifier(key) else root
            names[node] = unique([base], {*roots, *names.values(), *RESERVED})[0]
        if path and node.users:
            unpacking.append(f"{names[node]} = {root}{''.join(map(_step, path))}")
    return names, roots, unpacking


def _parameter(node: torch.fx.Node, name: str) -> str:
    if not node.args:
        return f"{name}: torch.Tensor"
    default = node.args[0]
    return f"{name}={literal(default)}" if default is not inspect.Parameter.empty else name


def _step(key: Any) -> str:
    if isinstance(key, pytree.SequenceKey):
        return f"[{key.idx}]"
    if isinstance(key, pytree.MappingKey):
        return f"[{literal(key.key)}]"
    if identifier(str(getattr(key, "name", ""))):
        return f".{key.name}"
    raise UsageError(f"input {key} has no spelling in a source file; export .onnx or .pt2")


def _safe(names: Iterable[str]) -> list[str]:
    cleaned = [name if identifier(name) else f"input_{i}" for i, name in enumerate(names)]
    return unique(cleaned, RESERVED)


def _result(graph: torch.fx.Graph, name_of: Callable[[torch.fx.Node], str]) -> str:
    value = graph.output_node().args[0]
    info: Any = getattr(graph._codegen, "pytree_info", None)  # pyright: ignore[reportPrivateUsage]
    if info is None or info.out_spec is None:
        return literal(value, name_of)
    flat = value if isinstance(value, (tuple, list)) else [value]
    leaves = [_Leaf(literal(item, name_of)) for item in flat]
    return _container(pytree.tree_unflatten(leaves, info.out_spec))


def _container(value: Any) -> str:
    # Containers of other libraries (ModelOutput, named tuples) become the plain ones they behave
    # like.
    if isinstance(value, _Leaf):
        return value.source
    if isinstance(value, Mapping):
        return (
            "{"
            + ", ".join(f"{literal(k)}: {_container(v)}" for k, v in value.items() if v is not None)
            + "}"
        )
    if isinstance(value, list):
        return f"[{', '.join(map(_container, value))}]"
    if isinstance(value, tuple):
        return f"({', '.join(map(_container, value))}{',' if len(value) == 1 else ''})"
    if value is None:
        return "None"
    raise UsageError(
        f"an output of type {type(value).__name__} has no spelling in a source file; return a dict"
    )


def _conditions(graph: torch.fx.Graph) -> set[torch.fx.Node]:
    """Sizes, and comparisons of these, that nothing but assertions read: written inside of them."""
    found: set[torch.fx.Node] = set()
    for node in reversed(graph.nodes):
        asserted = node.users and all(r in found or r.target is ASSERT for r in node.users)
        if asserted and is_size(node):
            found.add(node)
    return found


def _assertion(
    node: torch.fx.Node, conditions: set[torch.fx.Node], name_of: Callable[[torch.fx.Node], str]
) -> str:
    def spelled(one: torch.fx.Node) -> str:
        return call_source(one, spelled) if one in conditions else name_of(one)

    return f"torch._assert({', '.join(literal(arg, spelled) for arg in node.args)})"


def _is_check(node: torch.fx.Node) -> bool:
    function = getattr(node.target, "__name__", "")
    named = function == "_assert" or str(node.target).startswith(_CHECKS)
    return named and not node.users
