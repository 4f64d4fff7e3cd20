"""A form: how an op is called on live tensors, as text with the sizes left open.

``Form("F.conv2d({x}, {w}, {b})", x="t: n i h w", w="p: o i k k", b="p: o", o=WIDTH, k=(1, 3))``
calls an op on a live tensor ``x`` of four dims and new parameters ``w`` and ``b``. Operands come
with a kind and their dims: a letter is a dim, equal letters are equal sizes, ``*s`` stands for any
number of dims, ``g*o`` is computed. Kinds:

    t   a float tensor, live or a new parameter (the first operand is always live)
    p   a new parameter          s   a new buffer of positive floats
    b   booleans, live or new    i   integers, live     k:n  a new buffer of integers below n
    ~   like the first operand, or broadcast to it (``~b``: booleans)
    m   not a tensor but a module, made by the text that follows

Everything else is a letter: a tuple is drawn from, a text is evaluated with the letters before it,
and drawn from where it gives a list. ``when`` must hold.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from tests.fuzz.choices import Choices

Kind = Literal["float", "int", "bool"]
Env = dict[str, Any]
Part = str | tuple[Any, ...]

WIDTH = (2, 3, 4, 5, 6, 8)
FEW = (1, 2, 3)
NUMEL_MAX = 3000

_OPERAND = re.compile(r"(t|p|s|b|i|k|~b|~|m):\s*(.*)", re.DOTALL)
_KINDS: dict[str, Kind] = {"b": "bool", "~b": "bool", "i": "int", "k": "int"}
_LIVE = ("t", "b", "i", "~", "~b")


class RejectedError(Exception):
    """What was drawn is no valid call; the message says why."""


def divisors(n: int) -> list[int]:
    """Divisors of ``n`` but 1 and ``n``."""
    return [d for d in range(2, n) if n % d == 0]


def factors(n: int) -> list[int]:
    """Divisors of ``n``."""
    return [d for d in range(1, n + 1) if n % d == 0]


def span(low: int, high: int) -> list[int]:
    """All integers from ``low`` to ``high``."""
    return list(range(low, high + 1))


_FUNCTIONS: Env = {
    "divisors": divisors,
    "factors": factors,
    "span": span,
    "prod": lambda sizes: int(torch.Size(sizes).numel()),  # pyright: ignore[reportUnknownLambdaType]
    "__builtins__": {
        "len": len,
        "range": range,
        "min": min,
        "max": max,
        "list": list,
        "all": all,
        "tuple": tuple,
    },
}


@dataclass(frozen=True, slots=True)
class Operand:
    """One operand of a form: its name there, its kind, and its dims or the module's text."""

    name: str
    kind: str
    dims: str

    @property
    def dtype(self) -> Kind:
        """What the tensor holds."""
        return _KINDS.get(self.kind, "float")

    @property
    def may_be_live(self) -> bool:
        """Whether a value of the model can be passed."""
        return self.kind in _LIVE


class Form:
    """One way to call an op; see the module's documentation."""

    def __init__(self, text: str, weight: float = 1.0, /, **parts: Part) -> None:
        self.text = text
        self.weight = weight
        self.parts: list[tuple[str, Operand | str | tuple[Any, ...]]] = []
        for name, part in parts.items():
            found = _OPERAND.fullmatch(part) if isinstance(part, str) else None
            self.parts.append((name, Operand(name, *found.groups()) if found else part))
        self.operands = [part for _, part in self.parts if isinstance(part, Operand)]

    @property
    def first(self) -> Operand | None:
        """The operand that must be live."""
        return self.operands[0] if self.operands and self.operands[0].may_be_live else None

    def letters(self, choices: Choices, env: Env, upto: str | None) -> Iterator[str]:
        """Settle the letters before operand ``upto`` (all, if None) in ``env``."""
        for name, part in self.parts:
            if name == upto:
                return
            if isinstance(part, Operand) or name in env:
                continue
            value: Any = part
            if isinstance(part, str):
                value = eval(part, {**_FUNCTIONS, **env})
            if name == "when" and not value:
                raise RejectedError("the sizes do not fit")
            if isinstance(value, list | tuple):
                options: Sequence[Any] = value
                if not options:
                    raise RejectedError(f"no {name} fits")
                value = choices.pick(options)
            env[name] = value
            yield name


def match(dims: str, shape: Sequence[int], env: Mapping[str, Any]) -> Env | None:
    """Letters bound by reading ``shape`` as ``dims``, or None where it does not fit.

    >>> match("n c *s", (2, 8, 4, 4), {"n": 2})
    {'n': 2, 'c': 8, 's': (4, 4)}
    """
    tokens = dims.split()
    bound = dict(env)
    stars = [token for token in tokens if token.startswith("*")]
    extra = len(shape) - (len(tokens) - len(stars))
    for star in stars:
        if star[1:] in bound and stars[-1] != star:
            extra -= len(bound[star[1:]])
    if extra < 0 or (extra and not stars):
        return None
    at = 0
    for token in tokens:
        if token.startswith("*"):
            width = extra if token == stars[-1] else len(bound.get(token[1:], ()))
            if bound.setdefault(token[1:], tuple(shape[at : at + width])) != tuple(
                shape[at : at + width]
            ):
                return None
            at += width
        else:
            if not _fits(token, shape[at], bound):
                return None
            at += 1
    return bound


def _fits(token: str, size: int, bound: Env) -> bool:
    if token.isidentifier():
        return bound.setdefault(token, size) == size
    if token.isdigit():
        return int(token) == size
    try:
        return bool(eval(token, {**_FUNCTIONS, **bound}) == size)
    except NameError:
        return False


def sizes(dims: str, env: Env, choices: Choices) -> tuple[int, ...]:
    """The shape of a new tensor of these dims; letters without a size are drawn."""
    shape: list[int] = []
    for token in dims.split():
        if token.startswith("*"):
            shape.extend(env.setdefault(token[1:], ()))
        elif token.isidentifier():
            if token not in env:
                env[token] = choices.pick(WIDTH)
            shape.append(env[token])
        else:
            for letter in re.findall(r"[a-z_]\w*", token):
                if letter not in env and letter not in _FUNCTIONS:
                    env[letter] = choices.pick(WIDTH)
            shape.append(int(eval(token, {**_FUNCTIONS, **env})))
    if min(shape, default=1) < 1 or torch.Size(shape).numel() > NUMEL_MAX:
        raise RejectedError("a new tensor would be empty or large")
    return tuple(shape)


def alike(shape: Sequence[int], choices: Choices) -> tuple[int, ...]:
    """A shape that broadcasts to ``shape``: without leading dims, some dims of size 1."""
    start = choices.pick([1, 0, 2] if len(shape) > 2 else [1, 0] if len(shape) > 1 else [0])
    flat = choices.pick([(), (-1,), (0,)])
    kept = list(shape[start:])
    for at in flat:
        if len(kept) > 1:
            kept[at] = 1
    return tuple(kept)
