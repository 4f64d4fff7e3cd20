"""The slices of a model's tensors that a subnet runs on, cut by one Python function, some lines a
tensor.

A small network has more tensors than calls, and to find each by its path and to look up how it is
cut takes longer than a call. All subnets with the same blocks share a function: the cuts of each
are handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from nestify.dims.selection import Plan, Strided, cut
from nestify.runtime.channels_last import channels_last
from nestify.runtime.steps import Read
from nestify.support.module_tree import get_tensor

__all__ = ["Cut", "TensorReader"]

Reads = Callable[[nn.Module, list[Any], "Sequence[Cut]", Mapping[str, torch.Tensor]], None]
_MAP = 4  # dims of a map


class Cut(NamedTuple):
    """How one subnet cuts a tensor: by ``plan``, with ``zeros`` behind as torch's pad wants them.

    ``strided`` is the same as ``plan`` where that names first positions and grids only, ``sizes``
    are those of the result where it is a view.
    """

    plan: Plan
    zeros: Sequence[int]
    strided: Strided | None
    sizes: tuple[int, ...] | None

    @classmethod
    def by(cls, full: Sequence[int], plan: Plan, zeros: Sequence[int] = ()) -> Cut:
        """Of tensors of the shape ``full``."""
        if any(isinstance(kept, torch.Tensor) for _, kept in plan):
            return cls(plan, zeros, None, None)
        strided = Strided.of(full, plan)
        views = plan and not zeros and not strided.steps
        return cls(plan, zeros, strided, strided.sizes if views else None)

    @property
    def is_view(self) -> bool:
        """Whether the result shares memory with the tensor."""
        return self.sizes is not None or not (self.plan or self.zeros)

    def of(self, full: torch.Tensor) -> torch.Tensor:
        """Cut a tensor.

        >>> Cut.by((4,), [(0, 2)], (0, 1)).of(torch.ones(4))
        tensor([1., 1., 0.])
        """
        value = cut(full, self.plan) if self.strided is None else self.strided.cut(full)
        return F.pad(value, self.zeros) if self.zeros else value


class TensorReader:
    """Puts the slices of tensors of a module tree in their slots, maps with their channels last
    where they are ``turned``.

    >>> from torch import fx
    >>> node = fx.Graph().get_attr("1.bias")
    >>> reader = TensorReader([Read(node, 0, "1.bias", "_parameters", (), 0)])
    >>> net, env = nn.Sequential(nn.ReLU(), nn.Linear(2, 3)), [None]
    >>> reader.function(turned=False)(net, env, [Cut.by((3,), [(0, 2)])], {})
    >>> env[0].shape
    torch.Size([2])
    >>> print(reader.text(turned=False))
    def read(root, env, cuts, own):
        m1 = root._modules['1']
        t = m1._parameters.get('bias')
        if t is None: t = own['1.bias'] if '1.bias' in own else get(root, '1.bias')
        c = cuts[0]
        env[0] = t.as_strided(c.sizes, t.stride()) if c.sizes else c.of(t) if c.plan else t
        return
    """

    def __init__(self, tensors: Sequence[Read]) -> None:
        self._tensors = tensors
        self._made: dict[bool, Callable[..., None]] = {}

    def function(self, *, turned: bool) -> Reads:
        """Takes the tree, the values by slot, how a subnet cuts each of the tensors, and those to
        use where the tree has none.
        """
        if turned not in self._made:
            names: dict[str, Any] = {"get": get_tensor, "turn": channels_last}
            text = self.text(turned=turned)
            exec(compile(text, "<nestify: the tensors of a subnet>", "exec"), names)
            self._made[turned] = names["read"]
        return self._made[turned]

    def text(self, *, turned: bool) -> str:
        """The source of the function."""
        lines = self._lines(turned=turned)
        return "\n    ".join(["def read(root, env, cuts, own):", *lines, "return"])

    def _lines(self, *, turned: bool) -> Iterator[str]:
        modules = {"": "root"}
        for i, read in enumerate(self._tensors):
            path, _, leaf = read.name.rpartition(".")
            yield from _walk(modules, path)
            yield f"t = {modules[path]}.{read.registry}.get({leaf!r})"
            name = repr(read.name)
            yield f"if t is None: t = own[{name}] if {name} in own else get(root, {name})"
            yield f"c = cuts[{i}]"
            value = "t.as_strided(c.sizes, t.stride()) if c.sizes else c.of(t) if c.plan else t"
            turns = turned and len(read.dims) == _MAP
            yield f"env[{read.out}] = {f'turn({value})' if turns else value}"


def _walk(modules: dict[str, str], path: str) -> Iterator[str]:
    """Lines that name the module at ``path``, and those on the way to it."""
    if path not in modules:
        above, _, name = path.rpartition(".")
        yield from _walk(modules, above)
        modules[path] = f"m{len(modules)}"
        yield f"{modules[path]} = {modules[above]}._modules[{name!r}]"
