"""Capture: any ``nn.Module`` as one torch.fx graph of ATen calls over named parameters.

``torch.export`` gives the graph. What it bakes in is undone here or noted for later: parameters keep their
names and every node its module path and source line; the batch size is traced at 2 or more so that its dim
can be told from a dim of size 1; stateless modules that act in training only (stochastic depth) leave a
marker; chunk-like ops become ``split_with_sizes`` and attention scales are written out, so that the table
of rules stays small. Training-only branches that return other outputs (auxiliary heads) are not captured.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import operator
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from nestify.errors import CaptureError
from nestify.modes import eval_mode, stochastic_markers
from nestify.rules import bind_arguments, op_name, shape_of

Inputs = tuple[Any, ...]

__all__ = ["Capture", "capture", "source_line"]


@dataclass(frozen=True, slots=True)
class Capture:
    """One captured model: the graph and all that is needed to run or rebuild it.

    ``graph`` has placeholders (flattened inputs), ``get_attr`` nodes (parameters, buffers and constants, by
    original name) and calls of ATen ops. ``tensors`` maps those names to the model's own tensors;
    ``aliases`` maps every state-dict name to the name that the graph uses for the same tensor.
    ``mode_args`` lists arguments whose value depends on train/eval: (node, argument) -> value in training.
    """

    model: nn.Module
    graph: fx.Graph
    tensors: Mapping[str, torch.Tensor]
    aliases: Mapping[str, str]
    example_inputs: Inputs
    example_kwargs: Mapping[str, Any]
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec
    batched: frozenset[str]
    notes: tuple[str, ...] = ()
    mode_args: Mapping[tuple[str, str], Any] = field(default_factory=dict[tuple[str, str], Any])


def capture(
    model: nn.Module, example_inputs: Inputs, example_kwargs: Mapping[str, Any] | None = None
) -> Capture:
    """Capture ``model`` in eval mode; it is left as it was found, parameters and modes alike.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    >>> capture(net, (torch.randn(1, 3, 8, 8),)).graph.find_nodes(
    ...     op="get_attr", target="0.weight")[0].meta["val"].shape
    torch.Size([8, 3, 3, 3])

    Raises:
        CaptureError: ``torch.export`` cannot trace the model, or the model has no tensor input or output.
    """
    kwargs = dict(example_kwargs or {})
    flat, _ = pytree.tree_flatten((example_inputs, kwargs))
    if not any(isinstance(leaf, torch.Tensor) for leaf in flat):
        raise CaptureError(
            "the example inputs hold no tensor; pass example_inputs=(x, ...) with at least one"
        )
    args, kwargs, tiled = _tile_batch(example_inputs, kwargs)
    with eval_mode(model), stochastic_markers(model):
        try:
            program = _export(model, args, kwargs)
        except CaptureError:
            if not tiled:
                raise
            args, kwargs = example_inputs, dict(example_kwargs or {})
            program = _export(model, args, kwargs)
    return _Builder(model, program, args, kwargs).build()


def _export(model: nn.Module, args: Inputs, kwargs: dict[str, Any]) -> Any:
    try:
        with warnings.catch_warnings(), _quiet():
            warnings.simplefilter("ignore")
            return torch.export.export(model, args, kwargs, strict=False)
    except Exception as error:  # torch.export raises many kinds; each becomes one clear message
        raise CaptureError(_explain(model, error)) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's own report of a failed trace off the user's terminal: ours names the line and remedy."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _explain(model: nn.Module, error: Exception) -> str:
    """Name the module, the user's line and the remedy for a failed export."""
    frames = []
    trace = error.__traceback__
    path = ""
    while trace is not None:
        code = trace.tb_frame.f_code
        if not _is_library(code.co_filename):
            frames.append((code.co_filename, trace.tb_lineno))
            owner = trace.tb_frame.f_locals.get(code.co_varnames[0] if code.co_argcount else "")
            if isinstance(owner, nn.Module):
                path = next((n for n, m in model.named_modules() if m is owner), path)
        trace = trace.tb_next
    where = f" ({frames[-1][0]}:{frames[-1][1]})" if frames else ""
    inside = f" in module {path!r}" if path else ""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return (
        f"{type(model).__name__} cannot be captured{inside}{where}: {type(error).__name__}: {first}. "
        "The forward pass must run on the example inputs and must not branch on tensor values; "
        "pass example_inputs=/example_kwargs= that fit, or rewrite that line with torch.where or torch.cond"
    )


def _is_library(filename: str) -> bool:
    return (
        bool(re.search(r"[/\\](site-packages[/\\]torch|nestify)[/\\]", filename))
        or filename[:1] == "<"
    )


def source_line(node: fx.Node) -> str:
    """The user's own line that made ``node``, as ``file.py:12``, or an empty string."""
    trace = node.meta.get("stack_trace") or ""
    found = re.findall(r'File "([^"]+)", line (\d+)', trace)
    own = [(file, line) for file, line in found if not _is_library(file)]
    file, line = (own or found or [("", "")])[-1]
    return f"{file}:{line}" if file else ""


# --- inputs -------------------------------------------------------------------------------------------------


def _is_batched(leaf: Any, size: int) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.ndim > 0 and leaf.shape[0] == size


def _batch_size(flat: list[Any]) -> int:
    sizes = [leaf.shape[0] for leaf in flat if isinstance(leaf, torch.Tensor) and leaf.ndim > 0]
    return sizes[0] if sizes else 0


def _tile_batch(args: Inputs, kwargs: dict[str, Any]) -> tuple[Inputs, dict[str, Any], bool]:
    """Repeat inputs of batch 1, because a dim of size 1 cannot be told from one that broadcasts."""
    flat, spec = pytree.tree_flatten((args, kwargs))
    if _batch_size(flat) != 1:
        return args, kwargs, False
    tiled = [torch.cat([leaf, leaf]) if _is_batched(leaf, 1) else leaf for leaf in flat]
    args, kwargs = pytree.tree_unflatten(tiled, spec)
    return args, kwargs, True


# --- graph --------------------------------------------------------------------------------------------------


def _aliases(model: nn.Module) -> dict[str, str]:
    """Every name in the module tree -> the first name of the same tensor."""
    first: dict[int, str] = {}
    named = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    return {name: first.setdefault(id(tensor), name) for name, tensor in named}


class _Builder:
    """Copies an exported program into a graph of get_attr and call_function nodes."""

    def __init__(
        self, model: nn.Module, program: Any, args: Inputs, kwargs: dict[str, Any]
    ) -> None:
        self.model, self.program, self.args, self.kwargs = model, program, args, kwargs
        self.graph = fx.Graph()
        self.aliases = _aliases(model)
        self.tensors: dict[str, torch.Tensor] = {}
        self.new: dict[fx.Node, Any] = {}
        self.user_inputs: list[fx.Node] = []

    def build(self) -> Capture:
        specs = {spec.arg.name: spec for spec in self.program.graph_signature.input_specs}
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                self.placeholder(node, specs[node.name])
            elif node.op == "output":
                self.output(node)
            else:
                self.call(node)
        self.graph.lint()
        _drop_unused(self.graph)
        flat, _ = pytree.tree_flatten((self.args, self.kwargs))
        size = _batch_size(flat)
        batched = {
            n.name
            for n, leaf in zip(self.user_inputs, flat, strict=True)
            if _is_batched(leaf, size)
        }
        spec = self.program.call_spec
        return Capture(
            self.model,
            self.graph,
            self.tensors,
            self.aliases,
            self.args,
            self.kwargs,
            spec.in_spec,
            spec.out_spec,
            frozenset(batched),
        )

    def placeholder(self, node: fx.Node, spec: Any) -> None:
        if spec.kind == InputKind.USER_INPUT:
            made = self.graph.placeholder(node.name)
            self.user_inputs.append(made)
        elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            name, tensor = self.tensor(spec)
            made = self.graph.get_attr(name)
            self.tensors[name] = tensor
        else:
            raise CaptureError(f"input {node.name!r} of kind {spec.kind.name} cannot be served")
        made.meta.update(val=node.meta.get("val"), path="")
        self.new[node] = made

    def tensor(self, spec: Any) -> tuple[str, torch.Tensor]:
        if spec.kind == InputKind.CONSTANT_TENSOR:
            return spec.target.replace(".", "_"), self.program.constants[spec.target]
        name = self.aliases.get(spec.target, spec.target)
        path, _, leaf = name.rpartition(".")
        return name, getattr(self.model.get_submodule(path), leaf)

    def output(self, node: fx.Node) -> None:
        values = fx.map_arg(node.args[0], lambda n: self.new[n])
        if not any(isinstance(v, fx.Node) for v in values):
            raise CaptureError(
                f"{type(self.model).__name__} returns no tensor, so there is nothing to compile; "
                "let forward return its result"
            )
        self.graph.output(values)

    def call(self, node: fx.Node) -> None:
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            self.inline(node)
            return
        if node.op == "get_attr" or op_name(node.target).startswith("_assert"):
            return
        if node.target is operator.getitem and isinstance(pieces := self.new[node.args[0]], tuple):
            self.new[node] = pieces[node.args[1]]
            return
        target, args, kwargs = _canonical(node)
        made = self.graph.create_node(
            "call_function",
            target,
            fx.map_arg(args, lambda n: self.new[n]),
            fx.map_arg(kwargs, lambda n: self.new[n]),
            name=node.name,
        )
        self.note(made, node)

    def note(self, made: fx.Node, node: fx.Node) -> None:
        stack = node.meta.get("nn_module_stack") or {}
        path = next(reversed(stack.values()))[0] if stack else ""
        made.meta.update(val=node.meta["val"], path=path, stack_trace=node.meta.get("stack_trace"))
        self.new[node] = made

    def inline(self, node: fx.Node) -> None:
        """Copy the body of a ``no_grad`` or ``autocast(enabled=False)`` block; detach what leaves it."""
        name = (
            node.target.name() if callable(getattr(node.target, "name", None)) else str(node.target)
        )
        bodies = [a for a in node.args if isinstance(a, fx.Node) and a.op == "get_attr"]
        known = name in ("wrap_with_set_grad_enabled", "wrap_with_autocast")
        if not known or not bodies or (name == "wrap_with_autocast" and node.args[2] is not False):
            raise CaptureError(
                f"{type(self.model).__name__} uses {name} at {source_line(node) or 'an unknown line'}, "
                "which cannot be served; move that block out of forward"
            )
        body = getattr(self.program.graph_module, str(bodies[0].target))
        operands = iter(node.args[node.args.index(bodies[0]) + 1 :])
        detach = name == "wrap_with_set_grad_enabled" and node.args[0] is False
        for inner in body.graph.nodes:
            if inner.op == "placeholder":
                operand = next(operands)
                self.new[inner] = self.new[operand] if isinstance(operand, fx.Node) else operand
            elif inner.op == "output":
                flat = (
                    inner.args[0] if isinstance(inner.args[0], list | tuple) else (inner.args[0],)
                )
                self.new[node] = tuple(self.leave(v, detach) for v in flat)
            else:
                self.call(inner)

    def leave(self, value: Any, detach: bool) -> Any:
        inner = self.new[value] if isinstance(value, fx.Node) else value
        if not (detach and isinstance(inner, fx.Node)):
            return inner
        made = self.graph.call_function(torch.ops.aten.detach.default, (inner,))
        made.meta.update(inner.meta)
        return made


def _canonical(node: fx.Node) -> tuple[Any, Any, Any]:
    """Spell ops of many forms in the one form that the table has a rule for."""
    name = op_name(node.target)
    if name in ("chunk", "split", "tensor_split") or name.startswith("unsafe_"):
        bound = bind_arguments(node)
        dim = bound.get("dim", 0)
        source = bound["self"]
        sizes = [int(piece.shape[dim]) for piece in node.meta["val"]]
        return torch.ops.aten.split_with_sizes.default, (source, sizes, dim), {}
    if name == "scaled_dot_product_attention":
        kwargs = dict(node.kwargs)
        query = node.args[0]
        assert isinstance(query, fx.Node)
        if kwargs.get("scale") is None:
            kwargs["scale"] = 1.0 / math.sqrt(shape_of(query)[-1])
        return node.target, node.args, kwargs
    return node.target, node.args, dict(node.kwargs)


def _drop_unused(graph: fx.Graph) -> None:
    for node in reversed(list(graph.nodes)):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)
    graph.eliminate_dead_code()
    for node in reversed(list(graph.nodes)):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)


def copy_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Independent copies with the same sharing, parameters staying parameters."""
    memo: dict[int, Any] = {}
    return {name: copy.deepcopy(tensor, memo) for name, tensor in tensors.items()}
