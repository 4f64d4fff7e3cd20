"""Runs a small graph whole and sliced: what a rule of the op table claims, checked by running."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from nestify.capture.captured import Capture, capture
from nestify.dims import Const, Dim, dims_of, new_dim
from nestify.dims.selection import Keep
from nestify.rules import Call, bind_arguments, facts_of, fix_numbered, fix_plural

Tensors = list[torch.Tensor]


@dataclass(frozen=True)
class Sample:
    """A function of tensors and the operands to try it on.

    ``operands`` is like ``"B 4 5, 6* 4, i3: 2 2"``: sizes of one operand after another, ``*`` on
    dims that must stay elastic (all others must not), ``B`` for the batch dim of an input; ``i3:``
    makes integers below 3, ``b:`` booleans, ``s:`` floats without a gradient. Without ``values``
    only shapes are compared. ``macs`` is the count at full size, where torch's counter cannot tell.
    """

    run: Callable[..., Any]
    operands: str
    values: bool = True
    macs: int | None = None


class Samples(dict[str, Sample]):
    """Samples by name; no name twice."""

    def add(self, name: str, run: Callable[..., Any], operands: str, **options: Any) -> None:
        assert name not in self, name
        self[name] = Sample(run, operands, **options)


class OneOp(nn.Module):
    """A module whose parameters (inputs, where they have a batch dim) are a sample's operands."""

    def __init__(self, sample: Sample) -> None:
        super().__init__()
        self.sample = sample
        self.inputs: Tensors = []
        generator = torch.Generator().manual_seed(0)
        for i, text in enumerate(sample.operands.split(",")):
            tensor = _operand(text, generator)
            if "B" in text:
                self.inputs.append(tensor)
            elif tensor.is_floating_point() and ":" not in text:
                self.register_parameter(f"p{i}", nn.Parameter(tensor))
            else:
                self.register_buffer(f"p{i}", tensor)
        self.inputs = self.inputs or [torch.zeros(2)]

    def forward(self, *inputs: torch.Tensor) -> Any:
        given = iter(inputs)
        return self.sample.run(
            *(
                next(given) if "B" in text else getattr(self, f"p{i}")
                for i, text in enumerate(self.sample.operands.split(","))
            )
        )


def _operand(text: str, generator: torch.Generator) -> torch.Tensor:
    kind, _, sizes = text.rpartition(":")
    shape = [3 if word == "B" else int(word.rstrip("*")) for word in sizes.split()]
    if kind.strip().startswith("i"):
        return torch.randint(int(kind.strip()[1:]), shape, generator=generator)
    values = 0.1 + 0.8 * torch.rand(shape, generator=generator, dtype=torch.float64)
    return values < 0.5 if kind.strip() == "b" else values


class Analysis:
    """Dims and calls of a captured sample; unlike ``analyse``, outputs stay and errors rise."""

    def __init__(self, captured: Capture) -> None:
        self.captured = captured
        self.dims: dict[fx.Node, Any] = {}
        self.calls: dict[fx.Node, Call] = {}
        batch: Dim | None = None
        for node in captured.graph.nodes:
            if node.op == "placeholder":
                shape = node.meta["val"].shape
                batch = batch or Dim(int(shape[0]), batch=True)
                self.dims[node] = (batch, *(Const(int(n)) for n in shape[1:]))
            elif node.op == "get_attr":
                shape = captured.tensors[str(node.target)].shape
                self.dims[node] = tuple(new_dim(int(n)) for n in shape)
            elif node.op == "call_function":
                call = self.calls[node] = Call(node, self.dims)
                rule = facts_of(node.target).rule
                assert rule is not None, call.op
                rule(call)
                self.dims[node] = call.out
        fix_numbered(self.calls.values())
        fix_plural(self.calls.values())

    def operands(self, count: int) -> list[Any]:
        """Dims of the sample's operands in order; None where the graph does not read one."""
        inputs = (n for n in self.captured.graph.nodes if n.op == "placeholder")
        own = {n.target: n for n in self.captured.graph.nodes if n.op == "get_attr"}
        texts = self.captured.model.sample.operands.split(",")
        nodes = [next(inputs) if "B" in t else own.get(f"p{i}") for i, t in enumerate(texts)]
        return [None if node is None else self.dims[node] for node in nodes[:count]]

    def all_dims(self) -> list[Dim]:
        """Every Dim left, once each."""
        found: dict[Dim, None] = {}
        for dims in self.dims.values():
            for expr in _flat(dims):
                found.update(dict.fromkeys(dims_of(expr)))
        return list(found)

    def run(self, keep: Keep | None, silence: Keep | None = None) -> dict[fx.Node, Any]:
        """Run on slices (``keep``), or whole with removed positions zeroed where summed."""
        env: dict[fx.Node, Any] = {}
        inputs = iter(self.captured.example_inputs)
        for node in self.captured.graph.nodes:
            if node.op in ("placeholder", "get_attr"):
                value = (
                    next(inputs)
                    if node.op == "placeholder"
                    else self.captured.tensors[str(node.target)].detach()
                )
                env[node] = (keep.slice(value, self.dims[node]) if keep else value).clone()
            elif node.op == "call_function":
                muted = self.muted(node, env, silence) if silence else {}
                env[node] = run_call(node, {**env, **muted}, self.calls[node], keep)
        return env

    def muted(self, node: fx.Node, env: dict[fx.Node, Any], keep: Keep) -> dict[fx.Node, Any]:
        muted: dict[fx.Node, Any] = {}
        for source, dim in self.calls[node].contracted:
            value = muted.get(source, env[source])
            dim %= value.ndim
            mask = torch.zeros(value.shape[dim], dtype=value.dtype)
            mask[keep.indices(self.dims[source][dim])] = 1
            muted[source] = value * mask.view([-1 if d == dim else 1 for d in range(value.ndim)])
        return muted


def run_call(node: fx.Node, env: dict[fx.Node, Any], call: Call, keep: Keep | None) -> Any:
    """Run one call with its literals respelled for what is kept."""
    bound = bind_arguments(node)
    for name, expr in call.literals.items() if keep else ():
        bound[name] = keep.literal(bound[name], expr)
    bound = fx.map_arg(bound, lambda n: env[n])
    if not hasattr(node.target, "name"):
        return node.target(*bound.values())
    return node.target(**bound)


def pairs(value: Any, dims: Any) -> Iterator[tuple[torch.Tensor, Any]]:
    """Each tensor of an op's output with its dims."""
    if isinstance(value, torch.Tensor):
        yield value, dims
    else:
        yield from zip(value, dims, strict=True)


def draw_keeps(analysis: Analysis, count: int, seed: int = 0) -> Iterator[Keep]:
    """Kept sets: one position of each Dim, first positions, then any positions in order."""
    rng = random.Random(seed)
    whole = {
        dim for call in analysis.calls.values() for expr in call.normalised for dim in dims_of(expr)
    }
    dims = [dim for dim in analysis.all_dims() if dim not in whole]
    yield Keep({}, {dim: torch.tensor([rng.randrange(dim.size)]) for dim in dims})
    yield Keep({dim: rng.randint(1, dim.size) for dim in dims})
    for _ in range(count):
        sizes = {dim: rng.randint(1, dim.size) for dim in dims}
        yield Keep(
            {}, {d: torch.tensor(sorted(rng.sample(range(d.size), n))) for d, n in sizes.items()}
        )


def macs(call: Call, keep: Keep) -> int:
    """What the rule says that the call costs."""
    return sum(math.prod(keep.size(expr) for expr in loop) for loop in call.macs)


def analyse_sample(sample: Sample) -> Analysis:
    net = OneOp(sample)
    return Analysis(capture(net, tuple(net.inputs)))


def _flat(dims: Any) -> Iterator[Any]:
    for item in dims:
        if isinstance(item, tuple):
            yield from item
        else:
            yield item
