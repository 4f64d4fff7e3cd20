"""What a pattern is: a tiny model, inputs for it, and the groups and fixed dims expected of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

Inputs = tuple[Any, ...]
Model = TypeVar("Model", bound=type[nn.Module])


@dataclass(frozen=True)
class Pattern:
    """One entry of the table.

    ``inputs`` gives the sizes behind the batch of one input after another: ``"3 8 8, i11: 5"`` is
    an image and five integers below 11; a function of the batch size makes what that cannot say.
    ``groups`` has a line for each elastic group: name, size, kind, and its sites as tensor:dim.
    ``fixed`` has a line for each dim that an op must fix: size, op, and its sites; dims of the
    model's inputs and outputs are not listed. ``why`` is a clause of the reason given for those.
    ``note`` is a clause of the warning for what only training does and a nested model leaves out.
    """

    model: Callable[[], nn.Module]
    inputs: str | Callable[[int], Inputs]
    groups: str
    fixed: str = ""
    why: str = ""
    note: str = ""
    dtype: torch.dtype = torch.float64
    exports: bool = True

    def build(self, dtype: torch.dtype | None = None, seed: int = 0) -> nn.Module:
        """The model in eval mode, every number in it drawn at random: no zeros, no ones."""
        torch.manual_seed(seed)
        model = self.model().to(dtype or self.dtype)
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                if tensor.is_floating_point():
                    tensor.uniform_(0.5, 1.5) if (tensor == 1).all() else tensor.normal_(std=0.5)
        return model.eval()

    def example(self, batch: int, dtype: torch.dtype | None = None, seed: int = 0) -> Inputs:
        """Inputs for ``batch`` samples."""
        torch.manual_seed(seed + batch)
        if callable(self.inputs):
            made = self.inputs(batch)
        else:
            made = tuple(_input(text, batch) for text in self.inputs.split(","))
        return torch.utils._pytree.tree_map(lambda t: _cast(t, dtype or self.dtype), made)


def _input(text: str, batch: int) -> torch.Tensor:
    kind, _, sizes = text.rpartition(":")
    shape = [batch, *map(int, sizes.split())]
    if kind.strip():
        return torch.randint(int(kind.strip()[1:]), shape)
    return torch.randn(shape)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if value.is_floating_point() else value


class Patterns(dict[str, Pattern]):
    """Patterns by the name of their model class, which :meth:`add` decorates."""

    def add(
        self, inputs: str | Callable[[int], Inputs], groups: str, **options: Any
    ) -> Callable[[Model], Model]:
        def enter(model: Model) -> Model:
            assert model.__name__ not in self, model
            self[model.__name__] = Pattern(model, inputs, groups, **options)
            return model

        return enter
