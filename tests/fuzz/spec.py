"""A generated model as data: sources, steps and outputs, from which everything else follows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from tests.fuzz.forms import Kind

BATCH = 2

# What a model may have beside its calls, and how often.
TRAITS = {
    "shared": 0.15,  # every module lies at two paths
    "dict": 0.1,  # outputs by name
    "more in training": 0.05,  # an input beside the outputs
    "names in training": 0.05,  # a dict there
    "swapped in training": 0.05,  # the outputs in the other order, or one in a tuple
    "scaled in training": 0.05,  # outputs times a constant tensor
}


@dataclass(frozen=True, slots=True)
class Source:
    """A tensor that the model starts from: an input (dim 0 is its batch) or a parameter.

    Integers lie below ``below``; a parameter that is not a float is a buffer.
    """

    name: str
    shape: tuple[int, ...]
    kind: Kind = "float"
    is_input: bool = False
    below: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """One call: the form, the live operands by their name in the form, and the draws.

    Operands that are not named are new tensors of the step. The values are ``v3``, or ``v3_0`` ...
    where the call gives several.
    """

    number: int
    form: str
    operands: tuple[tuple[str, str], ...]
    choices: tuple[int, ...] = ()

    @property
    def value(self) -> str:
        """The name of what the call gives."""
        return f"v{self.number}"

    def gives(self, name: str) -> bool:
        """Whether ``name`` is a value of this step."""
        return name == self.value or name.startswith(f"{self.value}_")


@dataclass(frozen=True, slots=True)
class Spec:
    """A whole model; ``values`` seeds the numbers in its tensors.

    ``traits`` are what a model may have beside its calls: see :data:`TRAITS`.
    """

    sources: tuple[Source, ...]
    steps: tuple[Step, ...]
    outputs: tuple[str, ...]
    values: int = 0
    traits: tuple[str, ...] = ()

    def with_steps(self, steps: tuple[Step, ...]) -> Spec:
        """The same model with other steps."""
        return replace(self, steps=steps)

    def pruned(self) -> Spec:
        """The model without the steps and sources that no output needs."""
        needed = set(self.outputs)
        kept: list[Step] = []
        for step in reversed(self.steps):
            if any(step.gives(name) for name in needed):
                kept.append(step)
                needed.update(name for _, name in step.operands)
        sources = tuple(s for s in self.sources if s.name in needed or s.is_input)
        if any(s.is_input and s.name in needed for s in sources):
            sources = tuple(s for s in sources if s.name in needed)
        return replace(self, sources=sources, steps=tuple(reversed(kept)))

    def forms(self) -> Iterator[str]:
        """The form of each step."""
        return (step.form for step in self.steps)
