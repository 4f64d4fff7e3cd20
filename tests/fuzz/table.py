"""The form table: what is written by hand, and for every other op what its rule already tells.

An op whose rule is pointwise, or a notation line, needs no form of its own: its operands follow
from the schema or from the line. So most new rules are fuzzed from the day they are written, and
``tests/fuzz`` fails for those that are not.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from keyword import iskeyword
from typing import Any

import torch

from nestify.rules import OPS
from nestify.rules.notation import Line, parse
from tests.fuzz.algebra_forms import ALGEBRA_FORMS
from tests.fuzz.batch_forms import BATCH_FORMS
from tests.fuzz.forms import FEW, Form
from tests.fuzz.math_forms import MATH_FORMS
from tests.fuzz.shape_forms import SHAPE_FORMS
from tests.fuzz.space_forms import SPACE_FORMS

__all__ = ["NOT_REACHED", "derived", "form_table", "op_of", "portable"]

# Rules that no generated model can call, and why.
NOT_REACHED: dict[str, str] = {
    "transformers::grouped_mm_fallback": "an op that only the transformers package registers",
}

# Operands that keep a wide map in its domain, tried where the plain call gives no finite values.
WRAPS: dict[str, Form] = {
    "wrap:positive": Form("{x}.abs() + 0.4", x="t: *s"),
    "wrap:unit": Form("torch.sigmoid({x}) * 0.9", x="t: *s"),
    "wrap:above_one": Form("{x}.abs() + 1.1", x="t: *s"),
}
# What calms values that have grown too large or too small to compare.
SCALES: dict[str, Form] = {
    "scale:down": Form("{x} * 0.01", x="t: *s"),
    "scale:squash": Form("torch.tanh({x} * 0.01)", x="t: *s"),
    "scale:up": Form("{x} * 1000", x="t: *s"),
}

# Forms whose call the ONNX exporter refuses (torch 2.13), or that draw at random in every runtime:
# models for onnxruntime do without. One that is missing here costs time, one too many a comparison.
_NO_ONNX = """
amax:all amin:all median median:all cumprod histc prod:all rrelu signbit nextafter
adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d avg_pool1d:padded
scaled_dot_product_attention scaled_dot_product_attention:self scaled_dot_product_attention:mask
scaled_dot_product_attention:causal squeeze:all bernoulli rand_like randn_like rand randn
empty_like digamma lgamma erfinv special_expit logit xlogy hypot copysign frac fix
"""
_IN_ONNX = "linalg_norm cross mse_loss l1_loss rnn_tanh rnn_relu lstm_cell gru_cell tensordot kron"


def portable(name: str) -> bool:
    """Whether a form belongs to models for onnxruntime."""
    if name in ALGEBRA_FORMS or op_of(name).startswith(("special_", "fft_", "nan")):
        return op_of(name) in _IN_ONNX.split()
    row = OPS.get(op_of(name))
    random = row is not None and row.rule is OPS["relu"].rule and _is_random(op_of(name))
    return name not in _NO_ONNX.split() and not random


_NUMBERS = (0.5, 1.5, 2.0)


def op_of(name: str) -> str:
    """The op that a form is named after."""
    return name if "::" in name else name.partition(":")[0]


@cache
def form_table() -> dict[str, Form]:
    """Every form by name, for the rules as they stand now."""
    table = {**MATH_FORMS, **SPACE_FORMS, **SHAPE_FORMS, **ALGEBRA_FORMS, **BATCH_FORMS}
    named = {op_of(name) for name in table}
    for op in OPS:
        if op not in named and (form := derived(op)) is not None:
            table[op] = form
    return {**table, **WRAPS, **SCALES}


def derived(op: str) -> Form | None:
    """The form that the rule of ``op`` gives away, or None."""
    rule = OPS[op].rule
    schemas = _schemas(op)
    if isinstance(rule, Line):
        return next(filter(None, (_from_line(op, rule, schema) for schema in schemas)), None)
    if rule is OPS["relu"].rule:
        return next(filter(None, (_pointwise(op, schema) for schema in schemas)), None)
    return None


def _schemas(op: str) -> list[Any]:
    """Schemas of an op's overloads that give a new tensor, the plain ones first."""
    space, _, name = op.rpartition("::")
    packet = getattr(getattr(torch.ops, space or "aten"), name, None)
    if packet is None:
        return []
    order = ("default", "Tensor")
    names = sorted(packet.overloads(), key=lambda n: order.index(n) if n in order else 9)
    schemas = [getattr(packet, name)._schema for name in names]
    return [s for s in schemas if not s.is_mutable and not any(a.is_out for a in s.arguments)]


def _required(schema: Any) -> list[Any]:
    return [argument for argument in schema.arguments if not argument.has_default_value()]


def _constant(kind: str) -> tuple[Any, ...] | None:
    return {"bool": (False,), "number": _NUMBERS, "float": (0.5,)}.get(kind)


def _pointwise(op: str, schema: Any) -> Form | None:
    """``aten.op`` of a live tensor, tensors that broadcast to it, and plain numbers."""
    parts: dict[str, Any] = {}
    words: list[str] = []
    for letter, argument in zip("xyzuvwpqr", _required(schema), strict=False):
        kind = str(argument.type)
        constant = _constant({"Scalar": "number"}.get(kind, kind))
        if kind == "Tensor":
            parts[letter] = "~:" if parts else "t: *s"
        elif constant is not None:
            parts[letter] = constant
        else:
            return None
        words.append(f"{{{letter}}}")
    if parts.get("x") != "t: *s":
        return None
    _add_options(schema, parts, words)
    text = f"{_call(op)}({', '.join(words)})"
    return Form(f"{{x}} + 0 * {text}" if _is_random(op) else text, 0.35, **parts)


@cache
def _is_random(op: str) -> bool:
    """Whether an op draws numbers whatever the mode: its values cannot be compared."""
    schemas = _schemas(op)
    switches = any("train" in a.name for schema in schemas for a in schema.arguments)
    packet = getattr(torch.ops.aten, op, None)
    if packet is None or switches:
        return False
    tags = {tag for name in packet.overloads() for tag in getattr(packet, name).tags}
    return torch.Tag.nondeterministic_seeded in tags


def _from_line(op: str, line: Line, schema: Any) -> Form | None:
    """``aten.op`` with operands of the line's letters, and sizes where the line says what they
    spell.
    """
    arguments = {argument.name: argument for argument in schema.arguments}
    spelled = {argument: letter for letter, argument in line.sizes.items()}
    parts: dict[str, Any] = {}
    words: list[str] = []
    operands, _ = parse(line.text)
    for at, (names, tokens) in enumerate(zip(line.args, operands, strict=True)):
        name = next((n for n in names.split("|") if n in arguments), "")
        if not name:
            return None
        letter = f"{'xyzuvw'[at]}_"
        dims, lets = _tokens(tokens, line, first=not at)
        new = {key: value for key, value in lets.items() if key not in parts}
        parts |= {letter: f"t: {dims}", **new} if not at else {**new, letter: f"t: {dims}"}
        words.append(f"{name}={{{letter}}}")
    for argument in schema.arguments:
        if argument.name in spelled:
            words.append(f"{argument.name}={{{spelled[argument.name]}}}")
        elif not argument.has_default_value() and f"{argument.name}=" not in " ".join(words):
            return None
    _add_options(schema, parts, words, set(line.literals))
    return Form(f"{_call(op)}({', '.join(words)})", **parts)


_TEXTS = {"approximate": ("none", "tanh")}
# Numbers of selu's own, which no function of torch passes to elu, and ONNX leaves out; switches
# that draw at random whatever the mode.
_LEFT = ("scale", "input_scale", "train", "training")


def _add_options(
    schema: Any, parts: dict[str, Any], words: list[str], spelled: Collection[str] = ()
) -> None:
    """Draw optional flags and numbers too, the default first; torch refuses what does not fit."""
    for argument in schema.arguments:
        default = argument.default_value if argument.has_default_value() else None
        said = f"{argument.name}=" in " ".join(words)
        if said or iskeyword(argument.name) or argument.name in (*spelled, *_LEFT):
            continue
        options: tuple[Any, ...] = ()
        if isinstance(default, bool):
            options = (default, not default)
        elif isinstance(default, int | float) and str(argument.type) in ("number", "float"):
            options = (default, *(n for n in _NUMBERS if n != default))
        elif isinstance(default, str):
            options = tuple(repr(text) for text in _TEXTS.get(argument.name, ()))
        if options:
            parts[f"o_{argument.name}"] = options
            words.append(f"{argument.name}={{o_{argument.name}}}")


def _tokens(
    tokens: list[tuple[str, ...]], line: Line, *, first: bool
) -> tuple[str, dict[str, Any]]:
    """Tokens of a line as the dims of an operand; products of the first one are drawn apart."""
    dims: list[str] = []
    lets: dict[str, Any] = {}
    for token in tokens:
        if token[0] in ("*s", "*k") and line.rank:
            ranked = [f"{token[0][1]}{i}_" for i in range(line.rank)]
            dims.extend(ranked)
            if token[0] == "*k":  # a kernel is small
                lets.update(dict.fromkeys(ranked, FEW))
        elif token[0].startswith("*") or len(token) == 1:
            dims.append(token[0])
        elif first and len(token) == 2:
            whole = "".join(token) + "_"
            dims.append(whole)
            known = 0 if token[0] in line.sizes else 1
            lets[token[known]] = f"factors({whole})"
            lets[token[1 - known]] = f"{whole} // {token[known]}"
        else:
            dims.append("*".join(token))
    return " ".join(dims), lets


def _call(op: str) -> str:
    space, _, name = op.rpartition("::")
    return f"torch.ops.{space}.{name}" if space else f"aten.{name}"
