"""Specs as running models: each call is made once, which tells its sizes, then written as source.

The source is a script of its own: torch and nothing else makes the same model, to the bit.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from tests.fuzz.choices import Choices
from tests.fuzz.forms import (
    NUMEL_MAX,
    Env,
    Form,
    Kind,
    Operand,
    RejectedError,
    alike,
    match,
    sizes,
)
from tests.fuzz.prelude import PRELUDE, double_precision, names
from tests.fuzz.spec import BATCH, Source, Spec, Step

__all__ = ["Builder", "Value", "build", "double_precision", "example_inputs", "model_of", "script"]

_KIND_OF: dict[torch.dtype, Kind] = {
    torch.float64: "float",
    torch.int64: "int",
    torch.bool: "bool",
}


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of the model: its name, what a form needs to know of it, and its numbers."""

    name: str
    shape: tuple[int, ...]
    kind: Kind
    tensor: torch.Tensor

    @property
    def dull(self) -> bool:
        """Whether all its entries are equal, so that an error in it would not show."""
        return self.tensor.numel() > 1 and bool((self.tensor == self.tensor.flatten()[0]).all())


class _Attributes:
    """What ``self`` is while calls are tried one at a time."""


class Builder:
    """A model that grows call by call; each call is run at once, in float64."""

    def __init__(self, forms: Mapping[str, Form], values: int = 0) -> None:
        self.forms = forms
        self.seed = values
        self.values: dict[str, Value] = {}
        self.made: list[str] = []  # lines of __init__
        self.lines: list[str] = []  # lines of forward
        self.inputs: list[str] = []
        self.own = _Attributes()
        self.count = 0

    # --- sources ----------------------------------------------------------------------------------

    def source(self, source: Source) -> str:
        """Add an input or a parameter."""
        self.count = 20 * int(source.name[1:]) + (0 if source.is_input else 200)
        text = self._draw(source.shape, source.kind, source.below)
        if source.is_input:
            self.inputs.append(f"{source.name} = {text}")
            self._keep(source.name, self._eval(text))
        else:
            self._attribute(source.name, text, source.kind)
            self._keep(source.name, getattr(self.own, source.name))
        return source.name

    def _draw(self, shape: tuple[int, ...], kind: Kind, below: int) -> str:
        """The text that draws a tensor; every tensor has a seed of its own."""
        self.count += 10
        text = ", ".join(map(str, (self.seed * 10_000 + self.count, *shape)))
        if kind == "int":
            return f"draw({text}, below={max(below, 1)})"
        return f"draw({text})" + (" < 0.3" if kind == "bool" else "")

    def _attribute(self, name: str, text: str, kind: Kind | None, positive: bool = False) -> None:
        """A parameter, a buffer, or (kind None) a module of the model."""
        if kind is None:
            self.count += 10
            text = f"filled({text}, {self.seed * 10_000 + self.count})"
            self.made.append(f"self.{name} = {text}")
            setattr(self.own, name, self._eval(text).eval())
        elif kind == "float" and not positive:
            self.made.append(f"self.{name} = nn.Parameter({text})")
            setattr(self.own, name, self._eval(text))
        else:
            self.made.append(f'self.register_buffer("{name}", {text})')
            setattr(self.own, name, self._eval(text))

    def _eval(self, text: str) -> Any:
        with (
            double_precision(),
            torch.no_grad(),
            torch.random.fork_rng(devices=[]),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # of ops that torch would have called otherwise
            local = {name: value.tensor for name, value in self.values.items()}
            return eval(text, {**names(), "self": self.own}, local)

    def _keep(self, name: str, tensor: torch.Tensor) -> None:
        self.values[name] = Value(name, tuple(tensor.shape), _KIND_OF[tensor.dtype], tensor)

    def spelled(self, name: str) -> str:
        """How forward names a value."""
        return f"self.{name}" if hasattr(self.own, name) else name

    # --- steps ------------------------------------------------------------------------------------

    def step(self, step: Step, rng: random.Random | None = None) -> Step:
        """Make a call; return the step with the draws it took.

        Raises:
            RejectedError: it is no valid call, or its result is of no use.
        """
        form = self.forms[step.form]
        choices = Choices(rng, step.choices)
        length = len(self.made)
        self.count = 100 * (step.number + 10)  # numbers stay when other steps are dropped
        try:
            text = self._text(form, step, choices)
            result = self._run(text)
            kept = self._results(step, result)
        except Exception:
            del self.made[length:]
            raise
        for name, tensor in kept:
            self._keep(name, tensor)
        target = ", ".join(name for name, _ in kept)
        if isinstance(result, list | tuple):
            target = f"({target},)" if len(kept) == 1 else target
        self.lines.append(f"{target} = {text}")
        return Step(step.number, step.form, step.operands, tuple(choices.taken))

    def _text(self, form: Form, step: Step, choices: Choices) -> str:
        live = dict(step.operands)
        env: Env = {}
        spelled: dict[str, str] = {}
        if form.first is not None and form.first.name not in live:
            raise RejectedError("the first operand is live")
        for operand in form.operands:
            for _ in form.letters(choices, env, operand.name):
                pass
            if operand.name in live:
                found = match(operand.dims, self.values[live[operand.name]].shape, env)
                if operand.kind in ("~", "~b"):
                    found = env
                if found is None or self.values[live[operand.name]].kind != operand.dtype:
                    raise RejectedError("an operand does not fit")
                env = found
                spelled[operand.name] = self.spelled(live[operand.name])
            else:
                spelled[operand.name] = self._new(form, operand, step, env, choices)
        for _ in form.letters(choices, env, None):
            pass
        return form.text.format(**{**_shown(env), **spelled})

    def _new(self, form: Form, operand: Operand, step: Step, env: Env, choices: Choices) -> str:
        name = f"{'m' if operand.kind == 'm' else 'p'}{step.number}_{operand.name}"
        if operand.kind == "m":
            self._attribute(name, operand.dims.format(**_shown(env)), None)
            return f"self.{name}"
        kind, _, dims = operand.dims.rpartition(":")
        if operand.kind == "i":
            raise RejectedError("integers must be live")
        if operand.kind in ("~", "~b"):
            first = form.first
            assert first is not None
            shape = alike(self.values[dict(step.operands)[first.name]].shape, choices)
        else:
            shape = sizes(dims if operand.kind == "k" else operand.dims, env, choices)
        below = int(eval(kind, {"__builtins__": {}, **env})) if operand.kind == "k" else 0
        if operand.kind == "s":
            self.count += 10
            sized = ", ".join(map(str, (self.seed * 10_000 + self.count, *shape)))
            self._attribute(name, f"draw({sized}, low=0.5, high=1.5)", "float", positive=True)
        else:
            self._attribute(name, self._draw(shape, operand.dtype, below), operand.dtype)
        return f"self.{name}"

    def _run(self, text: str) -> Any:
        try:
            return self._eval(text)
        except (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise RejectedError(f"torch refuses: {lines[0]}") from error

    def _results(self, step: Step, result: Any) -> list[tuple[str, torch.Tensor]]:
        if isinstance(result, torch.Tensor):
            kept = [(step.value, result)]
        else:
            kept = [
                (f"{step.value}_{i}", tensor)
                for i, tensor in enumerate(cast(list[torch.Tensor], list(result)))
            ]
        for _, tensor in kept:
            if tensor.dtype not in _KIND_OF:
                raise RejectedError(f"gives {tensor.dtype}")
            if tensor.ndim > 6 or not 1 <= tensor.numel() <= NUMEL_MAX:
                raise RejectedError("gives nothing, or too much")
            if not tensor.isfinite().all():
                raise RejectedError("gives values that are not finite")
            if tensor.is_floating_point() and 0 < float(tensor.abs().max()) < 1e-9:
                raise RejectedError("gives what rounding leaves of zero")
        return kept

    # --- the result -------------------------------------------------------------------------------

    def source_code(self, outputs: tuple[str, ...], traits: tuple[str, ...] = ()) -> str:
        """The class, as Python source."""
        arguments = ", ".join(["self", *(line.partition(" = ")[0] for line in self.inputs)])
        made = self.made or ["pass"]
        if "shared" in traits:
            made = [*made, "self.again = nn.ModuleList(list(self.children()))"]
        return "\n".join(
            [
                "class Model(nn.Module):",
                "    def __init__(self):",
                "        super().__init__()",
                *(f"        {line}" for line in made),
                "",
                f"    def forward({arguments}):",
                *(f"        {line}" for line in self.lines),
                *(f"        {line}" for line in self._returned(outputs, traits)),
            ]
        )

    def _returned(self, outputs: tuple[str, ...], traits: tuple[str, ...]) -> Iterator[str]:
        """The lines that return the outputs, or in training something else."""
        values = [self.spelled(name) for name in outputs]
        plain = ", ".join(values)
        named = ", ".join(f'"y{i}": {value}' for i, value in enumerate(values))
        first = self.inputs[0].partition(" = ")[0] if self.inputs else values[0]
        swapped = ", ".join(reversed(values)) if len(values) > 1 else f"({plain},)"
        scaled = ", ".join(f"{value} * torch.tensor(0.5)" for value in values)
        for trait, text in (
            ("more in training", f"{plain}, {first}"),
            ("names in training", f'{{{named}, "x": {first}}}'),
            ("swapped in training", swapped),
            ("scaled in training", scaled),
        ):
            if trait in traits:
                yield "if self.training:"
                yield f"    return {text}"
        yield f"return {{{named}}}" if "dict" in traits else f"return {plain}"


def _shown(env: Env) -> dict[str, str]:
    """Letters as text: a star is its sizes, each followed by a comma."""
    return {
        name: "".join(f"{n}, " for n in cast(tuple[Any, ...], value))
        if isinstance(value, tuple)
        else str(value)
        for name, value in env.items()
    }


def build(spec: Spec, forms: Mapping[str, Form]) -> Builder:
    """Make every call of a spec.

    Raises:
        RejectedError: a call is not valid.
    """
    builder = Builder(forms, spec.values)
    for source in spec.sources:
        builder.source(source)
    for step in spec.steps:
        missing = [name for _, name in step.operands if name not in builder.values]
        if missing:
            raise RejectedError(f"nothing gives {missing[0]}")
        builder.step(step)
    if not set(spec.outputs) <= builder.values.keys():
        raise RejectedError("an output is missing")
    return builder


def model_of(builder: Builder, spec: Spec) -> nn.Module:
    """The model as a module in float64, in eval mode."""
    code = builder.source_code(spec.outputs, spec.traits)
    space = dict(names())
    with double_precision(), torch.random.fork_rng(devices=[]):
        exec(compile(code, "<generated model>", "exec"), space)
        return space["Model"]().eval()


def example_inputs(builder: Builder, batch: int = BATCH, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Inputs of a batch size; those of seed 0 and the usual batch are the ones it was grown on."""
    found: list[torch.Tensor] = []
    for line in builder.inputs:
        name, _, text = line.partition(" = ")
        value = builder.values[name].tensor
        if batch != BATCH or seed:
            first, rest = text.split(", ", 1)
            number = int(first.removeprefix("draw(")) + 100 * batch + seed
            # the batch is the first size
            text = f"draw({number}, {batch}" + rest[len(str(value.shape[0])) :]
            with double_precision():
                value = eval(text, names())
        found.append(value)
    return tuple(found)


def script(spec: Spec, forms: Mapping[str, Form], headline: str) -> str:
    """The model as a script that checks it: torch and nestify are all it needs.

    The script ends with exit code 4 where a law is broken.
    """
    builder = build(spec, forms)
    comment = "\n".join(f"# {line}".rstrip() for line in headline.splitlines())
    arguments = "".join(f"{name.partition(' = ')[0]}, " for name in builder.inputs)
    return "\n".join(
        [
            comment,
            PRELUDE,
            "",
            builder.source_code(spec.outputs, spec.traits),
            "",
            "",
            *builder.inputs,
            f"inputs = ({arguments})",
            "",
            'if __name__ == "__main__":',
            "    from tests.fuzz.replay import replay",
            "",
            f"    replay(Model(), inputs, seed={spec.values})",
            "",
        ]
    )
