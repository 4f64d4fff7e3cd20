"""What a generated model is made of: states, layer records, choices, the table of layer kinds."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

Scalar = int | float | bool | str | tuple[int, ...]
Args = dict[str, Scalar]
StateKind = Literal["map", "seq", "vec", "ids"]
Form = Literal["one", "tuple", "dict"]
T = TypeVar("T")

CHANNELS = (8, 4, 6, 12, 16, 24, 8, 12, 10, 16, 9, 32, 7)
MAX_NUMEL = 4096


@dataclass(frozen=True)
class State:
    """The shape of a value without the batch.

    map: (C, *S), seq: (T, C), vec: (C,), ids: (T,) of integers.
    """

    kind: StateKind
    shape: tuple[int, ...]

    def __repr__(self) -> str:
        return f"State({self.kind!r}, {self.shape!r})"

    @property
    def c(self) -> int:
        return self.shape[-1] if self.kind == "seq" else self.shape[0]

    @property
    def space(self) -> tuple[int, ...]:
        """Every size but the channels."""
        return self.shape[:-1] if self.kind == "seq" else self.shape[1:]

    @property
    def rank(self) -> int:
        return len(self.space)

    @property
    def dim(self) -> int:
        """The position of the channels, batch counted."""
        return 2 if self.kind == "seq" else 1

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def wide(self, c: int) -> State:
        return State(self.kind, (*self.space, c) if self.kind == "seq" else (c, *self.space))

    def sized(self, *space: int) -> State:
        return State(self.kind, (*space, self.c) if self.kind == "seq" else (self.c, *space))


@dataclass(frozen=True)
class Value:
    """A state and the name that it has in `forward`."""

    name: str
    state: State

    def __str__(self) -> str:
        return self.name

    @property
    def c(self) -> int:
        return self.state.c

    @property
    def space(self) -> tuple[int, ...]:
        return self.state.space

    @property
    def rank(self) -> int:
        return self.state.rank

    @property
    def dim(self) -> int:
        return self.state.dim


@dataclass(frozen=True)
class Layer:
    """One record of a spec: a kind of the table, the values that it reads, its arguments."""

    kind: str
    inputs: tuple[int, ...]
    args: tuple[tuple[str, Scalar], ...] = ()

    def __repr__(self) -> str:
        parts = [
            repr(self.kind),
            *map(str, self.inputs),
            *(f"{name}={value!r}" for name, value in self.args),
        ]
        return f"op({', '.join(parts)})"


def op(kind: str, *inputs: int, **args: Scalar) -> Layer:
    """A layer record, as its repr writes it."""
    return Layer(kind, inputs, tuple(args.items()))


@dataclass(frozen=True)
class ModelSpec:
    """A model as data. Value 0 is the input; each layer appends its outputs to the values."""

    start: State
    layers: tuple[Layer, ...]
    outputs: tuple[int, ...]
    form: Form = "one"


class Draw(Protocol):
    """The source of choices; the first option is the simplest one."""

    def choice(self, options: Sequence[T]) -> T: ...

    def integer(self, low: int, high: int) -> int: ...


@dataclass(frozen=True)
class RandomDraw:
    rng: random.Random

    def choice(self, options: Sequence[T]) -> T:
        return self.rng.choice(options)

    def integer(self, low: int, high: int) -> int:
        return self.rng.randint(low, high)


def width(d: Draw) -> int:
    return d.choice(CHANNELS)


def flag(d: Draw) -> bool:
    return d.choice((False, True))


def divisors(n: int, low: int = 2, high: int = 64) -> list[int]:
    return [k for k in range(low, min(n, high) + 1) if n % k == 0]


def sizes(space: Sequence[int | str]) -> str:
    return ", ".join(map(str, space))


class Code:
    """The text of a model under construction: lines of `__init__` and of `forward`."""

    def __init__(self) -> None:
        self.init: list[str] = []
        self.body: list[str] = []
        self.index = 0
        self._names: set[str] = set()

    def name(self, hint: str) -> str:
        base = name = f"{hint}{self.index}"
        for letter in "bcdefghijk":
            if name not in self._names:
                break
            name = base + letter
        self._names.add(name)
        return name

    def attr(self, hint: str, expr: str) -> str:
        name = self.name(hint)
        self.init.append(f"self.{name} = {expr}")
        return f"self.{name}"

    def param(self, hint: str, low: float, high: float, *shape: int) -> str:
        return self.attr(hint, f"nn.Parameter(torch.empty({sizes(shape)}).uniform_({low}, {high}))")

    def buffer(self, hint: str, expr: str) -> str:
        name = self.name(hint)
        self.init.append(f'self.register_buffer("{name}", {expr})')
        return f"self.{name}"

    def let(self, hint: str, expr: str) -> str:
        name = self.name(hint)
        self.body.append(f"{name} = {expr}")
        return name

    def lets(self, hint: str, count: int, expr: str) -> list[str]:
        names = [self.name(hint) for _ in range(count)]
        self.body.append(f"{', '.join(names)} = {expr}")
        return names


Result = tuple[str, tuple[State, ...]]
Emit = Callable[..., Result]


def one(expr: str, state: State) -> Result:
    return expr, (state,)


def nothing(_draw: Draw, _state: State) -> Args:
    return {}


def always(_state: State) -> bool:
    return True


@dataclass(frozen=True)
class Kind:
    """One entry of the table: where it applies, how its arguments are drawn, how it is written."""

    name: str
    family: str
    on: frozenset[str]
    emit: Emit
    draw: Callable[[Draw, State], Args] = nothing
    when: Callable[[State], bool] = always
    stay: bool = True  # keeps the kind of state and every size but the channels
    fresh: bool = False  # its output may be overwritten in place


KINDS: dict[str, Kind] = {}


def kind(
    family: str,
    on: str,
    draw: Callable[[Draw, State], Args] = nothing,
    when: Callable[[State], bool] = always,
    *,
    stay: bool = True,
    fresh: bool = False,
    name: str = "",
) -> Callable[[Emit], Emit]:
    """Enter a function that writes a layer and says the states of its outputs."""

    def enter(emit: Emit) -> Emit:
        key = name or emit.__name__
        assert key not in KINDS, key
        KINDS[key] = Kind(key, family, frozenset(on.split()), emit, draw, when, stay, fresh)
        return emit

    return enter
