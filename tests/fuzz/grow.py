"""Grows random models from the form table: one valid call after another on live values."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate

from tests.fuzz.build import Builder, Value
from tests.fuzz.forms import Env, Form, Operand, RejectedError, match
from tests.fuzz.spec import BATCH, TRAITS, Source, Spec, Step
from tests.fuzz.table import SCALES, WRAPS, op_of

__all__ = ["Grown", "grow"]

_TRIES = 60
_SHAPES = (
    ((6,), (8,), (12,)),
    ((4, 6), (3, 8), (5, 4)),
    ((3, 5, 5), (4, 4, 6), (2, 6, 6)),
    ((3, 8), (4, 6)),
    ((2, 3, 4, 4),),
)
# Calls that bring a value to what a form needs, by the form's number of dims.
_RAISES = ("linear", "unflatten", "unsqueeze", "conv:rise", "unflatten:whole", "expand")
_LOWERS = ("flatten", "mean", "select", "flatten:middle", "sum", "view:join")
_CASTS = {"int": "to:int", "bool": "to:bool", "float": "to:float"}
_LAYERS = (
    *("linear", "linear:function", "conv2d", "conv2d:groups", "conv1d", "conv3d", "embedding"),
    *("linear:live", "einsum:project", "conv_transpose2d", "residual_block", "residual_mlp"),
)
_HEADS = (
    *("linear", "linear", "linear:function", "addmm", "conv2d", "conv1d", "einsum:project"),
    *("sum:dims", "matmul", "mean:dims", "linalg_vector_norm", "layer_norm"),
)


@dataclass(frozen=True)
class Grown:
    """A grown model, ready to be checked, and how often each kind of draw was refused."""

    spec: Spec
    refusals: Mapping[str, int]


def grow(
    seed: int,
    index: int,
    forms: Mapping[str, Form],
    *,
    size: int = 8,
    focus: Collection[str] = (),
    without: Collection[str] = (),
) -> Grown:
    """Grow model ``index`` of ``seed``: up to ``size`` calls and the heads that end it.

    ``focus`` names ops that every model is to call, ``without`` forms that none may.
    """
    growth = _Growth(random.Random(f"{seed}:{index}"), forms, frozenset(without))
    growth.start()
    growth.layer()
    wanted = [name for name in forms if op_of(name) in focus]
    for _ in range(growth.rng.randint(2, size)):
        if growth.rng.random() < 0.15:
            growth.layer()
        growth.call(growth.weighted(growth.names))
    for _ in range(2 if wanted else 0):
        growth.insist(wanted)
    return growth.finished(index)


class _Growth:
    def __init__(
        self, rng: random.Random, forms: Mapping[str, Form], without: frozenset[str]
    ) -> None:
        self.rng = rng
        self.forms = forms
        self.names = [
            name
            for name in forms
            if name not in WRAPS and name not in SCALES and name not in without
        ]
        self.builder = Builder(forms, rng.randrange(10**6))
        self.sources: list[Source] = []
        self.steps: list[Step] = []
        self.used: dict[str, int] = {}
        self.warm: set[str] = set()  # what comes of a parameter, so that its dims may be elastic
        self.refusals: dict[str, int] = {}
        self.number = 0

    # --- the parts of a model ---------------------------------------------------------------------

    def start(self) -> None:
        """One input, seldom two or a parameter beside it."""
        shapes = self.rng.choice(_SHAPES)
        ids = self.rng.random() < 0.08
        for i in range(self.rng.choice((1, 1, 1, 2))):
            shape = (BATCH, *(self.rng.choice(((4,), (6,))) if ids else self.rng.choice(shapes)))
            kind = "int" if ids else "float"
            self.source(Source(f"x{i}", shape, kind, is_input=True, below=7 if ids else 0))
        if self.rng.random() < 0.25:
            shape = tuple(self.rng.choice((2, 3, 4, 6)) for _ in range(self.rng.randint(1, 4)))
            self.source(Source("p0", shape))

    def source(self, source: Source) -> None:
        self.sources.append(source)
        self.builder.source(source)
        self.used[source.name] = 0
        if not source.is_input and source.kind == "float":
            self.warm.add(source.name)

    def layer(self) -> None:
        """A layer with parameters, so that there is something to choose."""
        for name in self.rng.sample(_LAYERS, len(_LAYERS)):
            if name in self.names and self.call(name, tries=1, adapt=False):
                return

    def insist(self, wanted: list[str]) -> None:
        for _ in range(20):
            if self.call(self.rng.choice(wanted)):
                return

    def finished(self, index: int) -> Grown:
        """Heads on what nothing has read yet; the last values first."""
        given = {source.name for source in self.sources}
        loose = [n for n in self.values() if not self.used[n] and n not in given]
        lively = [n for n in loose if not self.builder.values[n].dull] or loose
        lively.sort(key=self.warm.__contains__)
        outputs = [self.head(name) for name in lively[-3:]]
        traits = tuple(name for name, share in TRAITS.items() if self.rng.random() < share)
        spec = Spec(
            tuple(self.sources), tuple(self.steps), tuple(outputs), self.builder.seed, traits
        ).pruned()
        return Grown(spec, self.refusals)

    def head(self, name: str) -> str:
        """Sum the value up, or leave it, which fixes its dims."""
        if self.builder.values[name].kind != "float":
            return name
        for form in self.rng.sample(_HEADS, len(_HEADS)):
            if self.rng.random() < 0.08:
                return name
            found = form in self.names and self.attempt(form, name)
            if found:
                return found[-1]
        return name

    # --- calls ------------------------------------------------------------------------------------

    def values(self) -> list[str]:
        """Values that may be read, oldest first."""
        return list(self.builder.values)

    def weighted(self, names: list[str]) -> str:
        totals = list(accumulate(self.forms[name].weight for name in names))
        return self.rng.choices(names, cum_weights=totals)[0]

    def call(self, name: str, tries: int = 4, *, adapt: bool = True) -> bool:
        """Call a form on some value that fits, or on one that is made to fit."""
        for _ in range(tries):
            fitting = [v for v in self.values() if self.fits(name, v)]
            if not fitting:
                break
            if self.attempt(name, self.preferred(fitting)):
                return True
        return adapt and self.adapted(name)

    def fits(self, name: str, value: str) -> bool:
        operand = self.forms[name].first
        found = self.builder.values[value]
        return (
            operand is not None
            and operand.dtype == found.kind
            and match(operand.dims, found.shape, {}) is not None
        )

    def preferred(self, names: list[str]) -> str:
        """Late values that nothing reads yet, and not those of equal entries."""
        weights = [
            (1 + i)
            / len(names)
            * (4 if not self.used[n] else 1)
            * (0.05 if self.builder.values[n].dull else 1)
            * (5 if n in self.warm else 1)
            for i, n in enumerate(names)
        ]
        return self.rng.choices(names, weights)[0]

    def adapted(self, name: str) -> bool:
        """Bring a late value to the kind and number of dims that the form wants, and call it."""
        operand = self.forms[name].first
        if operand is None:
            return False
        value = self.preferred(self.values())
        value = self.cast(value, operand)
        want = len(operand.dims.split())
        for _ in range(6):
            if value and self.fits(name, value) and self.attempt(name, value):
                return True
            if not value:
                return False
            value = self.reshaped(value, want)
        return False

    def cast(self, value: str, operand: Operand) -> str:
        kind = self.builder.values[value].kind
        if kind == operand.dtype:
            return value
        steps = {"bool": "to:float_bool", "int": "to:float"}
        for form in (steps.get(kind), None if operand.dtype == "float" else _CASTS[operand.dtype]):
            if form is not None:
                found = self.attempt(form, value) if form in self.names else []
                if not found:
                    return ""
                value = found[0]
        return value

    def reshaped(self, value: str, want: int) -> str:
        rank = len(self.builder.values[value].shape)
        if self.builder.values[value].kind != "float":
            return ""
        options = _RAISES if rank < want else _LOWERS if rank > want else ("linear", "transpose")
        found = self.attempt(self.rng.choice(options), value)
        return found[-1] if found else value

    # --- one attempt ------------------------------------------------------------------------------

    def attempt(self, name: str, value: str) -> list[str]:
        """Call a form with ``value`` as its first operand; the values it gives, [] if refused."""
        if name not in self.forms:
            return []
        form = self.forms[name]
        try:
            return self.run(name, self.operands(form, value))
        except RejectedError as error:
            self.refusals[str(error)] = self.refusals.get(str(error), 0) + 1
            if "not finite" not in str(error) or name in WRAPS:
                return []
        for wrap in self.rng.sample(list(WRAPS), len(WRAPS)):
            wrapped = self.attempt(wrap, value)
            if wrapped:
                try:
                    return self.run(name, self.operands(form, wrapped[0]))
                except RejectedError:
                    self.undo(wrapped[0], value)
        return []

    def undo(self, name: str, value: str) -> None:
        """Forget a wrap that did not help; its line is dropped as nothing reads it."""
        self.used[name] = 1

    def operands(self, form: Form, value: str) -> tuple[tuple[str, str], ...]:
        """Live values for the operands that may be live; the rest are made anew."""
        chosen: list[tuple[str, str]] = []
        env: Env = {}
        first = form.first
        for operand in form.operands:
            if operand is first:
                env = match(operand.dims, self.builder.values[value].shape, {}) or {}
                chosen.append((operand.name, value))
            elif operand.kind == "i" or (operand.may_be_live and self.rng.random() < 0.55):
                options = list(self.live(operand, env, self.builder.values[value]))
                if options:
                    picked = self.preferred(options)
                    env = match(operand.dims, self.builder.values[picked].shape, env) or env
                    chosen.append((operand.name, picked))
        return tuple(chosen)

    def live(self, operand: Operand, env: Env, first: Value) -> Iterator[str]:
        for name, value in self.builder.values.items():
            if value.kind != operand.dtype:
                continue
            if operand.kind in ("~", "~b"):
                if _broadcasts(value.shape, first.shape):
                    yield name
            elif match(operand.dims, value.shape, env) is not None:
                yield name

    def run(self, name: str, operands: tuple[tuple[str, str], ...]) -> list[str]:
        step = self.builder.step(Step(self.number, name, operands), self.rng)
        self.number += 1
        self.steps.append(step)
        for _, value in operands:
            self.used[value] += 1
        made = [n for n in self.builder.values if step.gives(n)]
        self.used.update(dict.fromkeys(made, 0))
        form = self.forms[name]
        layer = any(part.kind in ("p", "m") for part in form.operands)
        if layer or any(value in self.warm for _, value in operands):
            self.warm.update(made)
        return [self.scaled(n) for n in made]

    def scaled(self, name: str) -> str:
        """Bring large or vanishing values back to where a difference shows."""
        value = self.builder.values[name]
        if value.kind != "float":
            return name
        largest = float(value.tensor.abs().max())
        if 1e-3 <= largest <= 50 or largest == 0:
            return name
        scale = "scale:up" if largest < 1 else "scale:down" if largest < 5e3 else "scale:squash"
        try:
            step = self.builder.step(Step(self.number, scale, (("x", name),)), self.rng)
        except RejectedError:
            return name
        self.number += 1
        self.steps.append(step)
        self.used[name] += 1
        self.used[step.value] = 0
        if name in self.warm:
            self.warm.add(step.value)
        return step.value


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    """Whether ``shape`` stretches to ``to``."""
    return len(shape) <= len(to) and all(
        a in (1, b) for a, b in zip(reversed(shape), reversed(to), strict=False)
    )
