"""Growing a spec, one choice after another; every state is known, so every spec is valid."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from hypothesis import strategies as st

from tests.laws.generator.common import SQUASH
from tests.laws.generator.core import (
    KINDS,
    Draw,
    Form,
    Kind,
    Layer,
    ModelSpec,
    RandomDraw,
    Scalar,
    State,
    T,
    op,
)
from tests.laws.generator.text import Writer

PATTERN, HUGE = "pattern", 64
FAMILIES: dict[str, int] = {  # how often each family of kinds is drawn
    "linear": 5,
    "act": 3,
    "norm": 2,
    "conv": 8,
    PATTERN: 5,
    "pieces": 2,
    "shape": 5,
    "gate": 2,
    "attention": 5,
    "map attention": 1,
    "arith": 2,
    "take": 1,
    "pool": 2,
    "tokens": 4,
    "shared": 1,
    "cast": 3,
    "in place": 1,
    "embed": 1,
}
OFTEN: dict[str, int] = {  # kinds that few states admit, or that many models hold
    "pixel_shuffle": 8,
    "pixel_unshuffle": 6,
    "channel_shuffle": 3,
    "nhwc_linear": 2,
    "window_linear": 2,
    "patch_merging": 3,
    "unsqueeze_conv": 3,
    "upsample": 3,
    "interpolate": 2,
    "unfold": 2,
    "tokens_to_map": 2,
    "tokens_to_map_unflatten": 2,
    "tokens_to_map1d": 2,
    "map_to_tokens": 2,
    "patchify": 2,
    "class_token": 2,
    "repeat_tokens": 3,
    "drop_token": 2,
    "token_merging": 4,
    "token_splitting": 2,
}
SIMPLE = (
    "relu",
    "silu",
    "sigmoid",
    "tanh",
    "batch_norm",
    "batch_norm1d",
    "conv",
    "linear",
    "layer_scale",
)


def start_state(d: Draw) -> State:
    form = d.choice(("vec", "map2", "seq", "map1", "map2", "map3", "ids", "map2"))
    if form == "ids":
        return State("ids", (d.integer(3, 8),))
    if form == "vec":
        return State("vec", (d.choice((8, 6, 12, 16, 24)),))
    if form == "seq":
        return State("seq", (d.choice((4, 6, 8, 9, 12, 5)), d.choice((8, 6, 12, 16))))
    rank = int(form[-1])
    sides = (4, 6, 8, 5, 7, 10) if rank < 3 else (4, 5, 6)
    same = d.choice(sides)
    space = (
        (same,) * rank if d.choice((True, False)) else tuple(d.choice(sides) for _ in range(rank))
    )
    return State("map", (d.choice((3, 4, 8, 6, 2)), *space))


class Growth:
    """A spec under construction; values are named by their index."""

    def __init__(self, d: Draw, start: State, without: Collection[str]) -> None:
        self.d = d
        self.start = start
        self.layers: list[Layer] = []
        self.writer = Writer(start)
        self.uses: Counter[int] = Counter()
        self.fresh: set[int] = set()
        self.gone: set[int] = set()  # overwritten in place
        self.kinds = [entry for entry in KINDS.values() if entry.name not in without]
        self.names = {entry.name for entry in self.kinds}

    def state(self, value: int) -> State:
        return self.writer.values[value].state

    def add(self, name: str, *inputs: int, **args: Scalar) -> list[int]:
        layer = op(name, *inputs, **args)
        self.layers.append(layer)
        self.uses.update(inputs)
        outputs = self.writer.write(layer)
        if KINDS[name].fresh:
            self.fresh.update(outputs)
        if name in ("relu_", "iadd"):
            self.gone.add(inputs[0])
        return outputs

    def disposable(self, value: int) -> bool:
        """Nothing else reads it, so it may be overwritten."""
        return value in self.fresh and not self.uses[value]

    def fits(self, entry: Kind, value: int, stay: bool) -> bool:
        state = self.state(value)
        if state.kind not in entry.on or (stay and not entry.stay) or not entry.when(state):
            return False
        if state.c > HUGE and entry.family not in ("linear", "act", "take", "gate"):
            return False
        return entry.name != "relu_" or self.disposable(value)

    def step(self, value: int, stay: bool = False) -> int:
        """One random layer, or a pattern of layers, behind a value."""
        able: dict[str, list[Kind]] = {}
        for entry in self.kinds:
            if self.fits(entry, value, stay):
                able.setdefault(entry.family, []).append(entry)
        families = [f for f in able if f in FAMILIES]
        if not stay and self.state(value).kind != "ids" and self.state(value).c <= HUGE:
            families.append(PATTERN)
        if not families:
            return value
        family = self.d.choice([f for f in FAMILIES if f in families for _ in range(FAMILIES[f])])
        if family == PATTERN:
            return self.pattern(value)
        entry = self.d.choice([e for e in able[family] for _ in range(OFTEN.get(e.name, 1))])
        return self.gather(self.add(entry.name, value, **entry.draw(self.d, self.state(value))))

    def body(self, value: int, most: int = 3) -> int:
        """A few layers that keep every size but the channels."""
        for _ in range(self.d.integer(1, most)):
            value = self.step(value, stay=True)
        return value

    def simple(self, value: int) -> int:
        """One plain layer."""
        able = [KINDS[n] for n in SIMPLE if n in self.names and self.fits(KINDS[n], value, True)]
        if not able:
            return value
        entry = self.d.choice(able)
        return self.add(entry.name, value, **entry.draw(self.d, self.state(value)))[0]

    def project(self, value: int, out: int) -> int:
        if self.state(value).c == out:
            return value
        return self.add("project", value, out=out, norm=self.d.choice((False, True)))[0]

    def merge(self, a: int, b: int) -> int:
        """One value of two that agree in all but the channels."""
        wide, narrow = self.state(a).c, self.state(b).c
        options = [
            "add",
            "add",
            "mul",
            "cat",
            "stack_sum",
            "add",
            "maximum",
            "sub",
            "stack_weighted",
        ]
        options += ["blend", "add_alpha", "stack_mean", "stack_flatten", "iadd", "iadd"]
        small = wide + narrow <= 40
        able = [
            n for n in options if n in self.names and (small or n not in ("cat", "stack_flatten"))
        ]
        name = self.d.choice(able or ["add"])
        if name != "cat":
            if wide > narrow and self.d.choice((False, True)):
                a = self.project(a, narrow)
            b = self.project(b, self.state(a).c)
        if name == "mul":
            b = self.add(self.d.choice(SQUASH), b, form=0)[0]
        if name == "iadd" and not (self.disposable(a) and a != b):
            name = "add"
        return self.add(name, a, b)[0]

    def gather(self, pieces: list[int]) -> int:
        """One value again of the pieces of a split; all of them are read."""
        if len(pieces) == 1:
            return pieces[0]
        cascade, treated = self.d.choice((False, False, True)), list[int]()
        for piece in pieces:
            if cascade and treated:
                piece = self.merge(piece, treated[-1])
            treated.append(self.simple(piece) if self.d.choice((False, True)) else piece)
        wide = sum(self.state(p).c for p in treated)
        if wide <= HUGE and "cat" in self.names and self.d.choice((True, True, False)):
            order = treated if self.d.choice((True, False)) else treated[::-1]
            return self.add("cat", *order)[0]
        whole = treated[0]
        for piece in treated[1:]:
            whole = self.merge(whole, piece)
        return whole

    def pattern(self, value: int) -> int:
        name = self.d.choice(("residual", "residual", "fork", "dense", "skip", "gate"))
        if name == "dense":
            return self.dense(value)
        if name == "skip":
            return self.skip(value)
        self.uses[value] += 1
        first = self.body(value)
        self.uses[value] -= 1
        if name == "residual":
            return self.residual(first, value)
        if name == "gate":
            gate = self.add(self.d.choice(SQUASH), self.project(first, self.state(value).c), form=0)
            return self.add("mul", value, gate[0])[0]
        self.uses[first] += 1
        second = self.body(value)
        self.uses[first] -= 1
        return value if first == second else self.merge(first, second)

    def residual(self, branch: int, value: int) -> int:
        """Identity when the widths agree, else a projection on the branch or on the shortcut."""
        if branch == value:
            return value
        if self.state(branch).c > 32 or self.d.choice((True, False)):
            branch = self.project(branch, self.state(value).c)
        shortcut = self.project(value, self.state(branch).c)
        inplace = self.disposable(branch) and "iadd" in self.names and self.d.choice((False, True))
        order = (
            (branch, shortcut) if inplace or self.d.choice((True, False)) else (shortcut, branch)
        )
        return self.add("iadd" if inplace else "add", *order)[0]

    def dense(self, value: int) -> int:
        """DenseNet: every layer reads all that came before it."""
        features = [value]
        for _ in range(self.d.integer(1, 3)):
            if sum(self.state(f).c for f in features) > 32:
                break
            self.uses[features[-1]] += 1
            joint = self.add("cat", *features)[0] if len(features) > 1 else value
            growth = self.d.choice((4, 6, 8, 3))
            features.append(self.simple(self.add("project", joint, out=growth, norm=True)[0]))
        return self.add("cat", *features)[0] if len(features) > 1 else value

    def skip(self, value: int) -> int:
        """A merge with any earlier value of the same sizes."""
        state = self.state(value)
        able = [
            v.state.c <= HUGE and v.state.kind == state.kind and v.state.space == state.space
            for v in self.writer.values
        ]
        earlier = [i for i, ok in enumerate(able) if ok and i != value and i not in self.gone]
        return (
            self.merge(value, self.d.choice(earlier))
            if earlier
            else self.residual(self.body(value), value)
        )

    def head(self, value: int) -> int:
        """The usual endings of a model; a raw value is one of them."""
        state, classes = self.state(value), self.d.integer(3, 7)
        layered = any("nn.Linear" in line or "nn.Conv" in line for line in self.writer.code.init)
        if layered and self.d.choice((False, False, True)):
            return value
        if state.kind == "map":
            value = self.flat(value)
        elif state.kind == "seq" and self.d.choice((True, False)):
            value = self.add("tokens_to_vector", value, how=self.d.choice(("mean", "first")))[0]
        last = "conv" if self.state(value).kind == "map" else "linear"
        if last not in self.names:
            return value
        if last == "conv":
            return self.add("conv", value, out=classes, k=1, bias=True)[0]
        if self.start.kind == "ids" and self.d.choice((True, False)):
            return self.add("tied_head", self.project(value, self.state(1).c))[0]
        return self.add("linear", value, out=classes, bias=True)[0]

    def flat(self, value: int) -> int:
        """A map pooled or flattened to a vector, or left as it is."""
        able = [
            n
            for n in ("global_pool", "flatten", "nhwc_flatten", "")
            if n == "" or self.fits(KINDS[n], value, False)
        ]
        name = self.d.choice(able)
        if not name:
            return value
        return self.add(name, value, **KINDS[name].draw(self.d, self.state(value)))[0]


def outputs(growth: Growth, last: int) -> tuple[tuple[int, ...], Form]:
    """The last value, and sometimes one or two earlier ones beside it."""
    form: Form = growth.d.choice(("one",) * 6 + ("tuple", "dict"))
    others = [i for i in range(1, last) if i not in growth.gone]
    if form == "one" or not others:
        return (last,), "one"
    extra = {growth.d.choice(others) for _ in range(growth.d.integer(1, 2))}
    return (last, *sorted(extra)), form


def grow(d: Draw, max_layers: int, without: Collection[str], start: State | None) -> ModelSpec:
    growth = Growth(d, start or start_state(d), without)
    value, depth = 0, d.integer(2, max_layers)
    for _ in range(depth):
        if len(growth.layers) < depth:
            value = growth.step(value)
    last = growth.head(value)
    values, form = outputs(growth, last)
    return ModelSpec(growth.start, tuple(growth.layers), values, form)


def random_spec(
    seed: int, max_layers: int = 12, without: Collection[str] = (), start: State | None = None
) -> ModelSpec:
    """A spec from a seed; `without` names kinds to leave out, `start` fixes the input."""
    return grow(RandomDraw(random.Random(seed)), max_layers, without, start)


@dataclass(frozen=True)
class HypothesisDraw:
    """Choices made, and shrunk, by hypothesis."""

    draw: st.DrawFn

    def choice(self, options: Sequence[T]) -> T:
        return options[self.integer(0, len(options) - 1)]

    def integer(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))


@st.composite
def specs(
    draw: st.DrawFn, max_layers: int = 12, without: Collection[str] = (), start: State | None = None
) -> ModelSpec:
    """A hypothesis strategy of specs, with the options of `random_spec`."""
    return grow(HypothesisDraw(draw), max_layers, without, start)


def coverage(models: Iterable[ModelSpec]) -> Counter[str]:
    """How many layers of each kind of the table the specs hold."""
    return Counter(dict.fromkeys(KINDS, 0)) + Counter(
        layer.kind for spec in models for layer in spec.layers
    )
