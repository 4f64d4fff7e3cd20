"""One row of the op table: the rule of an op, and the facts about it that other rooms ask for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from torch import fx
from torch._ops import OpOverload

from nestify.rules.call import Call, bind_arguments

__all__ = [
    "MODE_ARGUMENTS",
    "STOCHASTIC",
    "UNKNOWN",
    "Layer",
    "Op",
    "Rule",
    "mode_argument",
    "rows",
    "schema_views",
]

Rule = Callable[[Call], Any]

STOCHASTIC = "nestify::stochastic"  # what a module leaves in the graph that only training runs
MODE_ARGUMENTS = ("train", "training", "use_input_stats")  # arguments that training switches


class Layer(NamedTuple):
    """The arguments by which an op reads a layer's input, weight and bias.

    ``turned``: the weight is (inputs, outputs), not (outputs, inputs, ...).
    """

    input: str
    weight: str
    bias: str = ""
    turned: bool = False


@dataclass(frozen=True, slots=True)
class Op:
    """A row: what the op's dims mean, and facts. tests/laws/test_facts.py runs every op for them.

    Attributes:
        rule: what the dims of a call mean; None for an op without a rule.
        views: gives a view of its first operand, which its schema does not say.
        hands_on: gives its first operand itself or a copy, as arguments and mode decide.
        copies: gives its operand's values unchanged, perhaps in other memory.
        pairs: reads two neighbouring values as one: they must be adjacent in memory.
        strided: reads a tensor by its place in memory.
        memory_order: treats positions in the order in which they are in memory, as ops that draw a
            number for each do, or refuses channels last.
        zero_safe: under it a channel of zeros (of its weights too) stays finite, has finite
            gradients, and leaves the other channels alone, unless it takes statistics over them.
        nonlinear: bends: a channel that passes it is hidden, not part of a linear stream.
        pools: pools positions into one feature vector.
        slides: slides a kernel over a map, with groups.
        scales: its parameters scale and shift normalised values.
        statistics: keeps running statistics, which training writes.
        permutes: reorders the dims of its operand, and may so flip a matrix.
        infers: takes -1 for a size in its argument of sizes.
        cuts_gradients: torch's function of that name gives no gradients, where its op pretends to.
        layer: how it reads a layer's tensors; None for ops that are no layer.
    """

    rule: Rule | None
    views: bool = False
    hands_on: bool = False
    copies: bool = False
    pairs: bool = False
    strided: bool = False
    memory_order: bool = False
    zero_safe: bool = False
    nonlinear: bool = False
    pools: bool = False
    slides: bool = False
    scales: bool = False
    statistics: bool = False
    permutes: bool = False
    infers: bool = False
    cuts_gradients: bool = False
    layer: Layer | None = None


UNKNOWN = Op(None, hands_on=True, strided=True, memory_order=True)
"""The row of an op that the table lacks: of each fact the answer that is always safe."""


def rows(names: str, rule: Rule, **facts: Any) -> dict[str, Op]:
    """One row for each of several ops that have the rule and the facts in common."""
    return dict.fromkeys(names.split(), Op(rule, **facts))


def mode_argument(node: fx.Node) -> str | None:
    """The argument of a call that training switches, or None.

    >>> import torch
    >>> x = fx.Graph().placeholder("x")
    >>> mode_argument(x.graph.call_function(torch.ops.aten.dropout.default, (x, 0.5, False)))
    'train'
    """
    bound = bind_arguments(node)
    return next((name for name in MODE_ARGUMENTS if name in bound), None)


@cache
def schema_views(target: Any) -> tuple[str, ...]:
    """Names of the arguments whose memory the result may share by the op's schema."""
    if not isinstance(target, OpOverload):
        return ()
    schema = target._schema  # pyright: ignore[reportPrivateUsage]  # torch gives it no other way
    return tuple(argument.name for argument in schema.arguments if argument.alias_info)
