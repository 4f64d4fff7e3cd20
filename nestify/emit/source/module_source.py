"""Modules and parameters by dotted name, as nested constructors and as the expressions that
reach them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch

from nestify.emit.source.constructors import constructor
from nestify.emit.source.literals import identifier, literal, text
from nestify.emit.source.weights import tensor_at
from nestify.errors import UsageError

_INDENT = "    "
_WIDTH = 96


@dataclass
class Branch:
    """A container: constructors and further containers by name, in the order of the model."""

    children: dict[str, str | Branch] = field(default_factory=dict[str, "str | Branch"])

    @property
    def is_list(self) -> bool:
        """Whether this is a plain list of modules: 0, 1, 2, ..."""
        numbered = list(self.children) == [str(i) for i in range(len(self.children))]
        return bool(numbered and self.children) and not any(
            _is_tensor(child) for child in self.children.values()
        )

    @property
    def needs_group(self) -> bool:
        """Whether a container that is not a list occurs below."""
        branches = [child for child in self.children.values() if isinstance(child, Branch)]
        return any(not child.is_list or child.needs_group for child in branches)


def tree_of(
    model: torch.nn.Module, called: Iterable[str], fetched: Iterable[str]
) -> tuple[Branch, list[str]]:
    """The modules that are called and the tensors that are fetched, with the names of all their
    tensors.

    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3))
    >>> tree, tensors = tree_of(model, called=["0"], fetched=[])
    >>> tree.children, tensors
    ({'0': 'nn.Linear(2, 3)'}, ['0.weight', '0.bias'])

    Raises:
        UsageError: a called module is not a plain module of ``torch.nn``.
    """
    called, fetched = set(called), set(fetched)
    root, tensors = Branch(), list[str]()
    for path in _in_order(model, called):
        source = constructor(model.get_submodule(path))
        if source is None:
            kind = type(model.get_submodule(path)).__name__
            raise UsageError(
                f"module {path!r} ({kind}) has no constructor call of torch.nn that builds it"
            )
        _put(root, path, source)
        tensors += [
            f"{path}.{name}" for name in model.get_submodule(path).state_dict(keep_vars=True)
        ]
    order = [name for name in model.state_dict(keep_vars=True) if name in fetched]
    for path in dict.fromkeys([*order, *sorted(fetched)]):
        if path in tensors:
            continue
        if path.rpartition(".")[0] in called:
            raise UsageError(f"tensor {path!r} is not a part of the state of its module")
        _put(root, path, _tensor_source(tensor_at(model, path)))
        tensors.append(path)
    return root, tensors


def access(root: Branch, path: str) -> str:
    """The expression for a dotted name.

    >>> root = Branch({"layer1": Branch({"0": Branch({"conv1": "nn.Conv2d(3, 8, 3)"})})})
    >>> access(root, "layer1.0.conv1")
    'self.layer1[0].conv1'
    """
    source, here = "self", root
    for index, part in enumerate(path.split(".")):
        child = here.children.get(part)
        if here.is_list and index:
            source += f"[{part}]"
        elif identifier(part):
            source += f".{part}"
        else:
            source = f"self.get_submodule({text(part)})" if not index else f"{source}[{text(part)}]"
        here = child if isinstance(child, Branch) else Branch()
    return source


def assignments(root: Branch) -> list[str]:
    """The statements of ``__init__``, without indentation."""
    lines: list[str] = []
    for name, child in root.children.items():
        head, tail = (
            (f"self.{name} = ", "")
            if identifier(name)
            else (f"self.add_module({text(name)}, ", ")")
        )
        rendered = _render(child, 0, len(head))
        lines += f"{head}{rendered}{tail}".splitlines()
    return lines


def _render(child: str | Branch, depth: int, used: int) -> str:
    if isinstance(child, str):
        return child
    plain = all(identifier(name) for name in child.children)
    labels = {
        name: "" if child.is_list else f"{name}=" if plain else f"{text(name)}: "
        for name in child.children
    }
    opening, closing = ("nn.ModuleList([", "])") if child.is_list else ("Group(", ")")
    if not child.is_list and not plain:
        opening, closing = "Group(**{", "})"
    pad = _INDENT * (depth + 1)
    items = [
        f"{label}{_render(child.children[name], depth + 1, len(pad))}"
        for name, label in labels.items()
    ]
    flat = f"{opening}{', '.join(items)}{closing}"
    if "\n" not in flat and used + len(flat) + depth * len(_INDENT) < _WIDTH - 8:
        return flat
    body = "".join(f"{pad}{item},\n" for item in items)
    return f"{opening}\n{body}{_INDENT * depth}{closing}"


def _put(root: Branch, path: str, source: str) -> None:
    *parents, last = path.split(".")
    here = root
    for part in parents:
        child = here.children.setdefault(part, Branch())
        if not isinstance(child, Branch):
            raise UsageError(f"module {path!r} lies inside another module that is called itself")
        here = child
    if last in here.children:
        raise UsageError(f"module {path!r} is called itself and holds modules that are called")
    here.children[last] = source


def _in_order(model: torch.nn.Module, paths: set[str]) -> list[str]:
    # By registration, so that lists count up; a module under two names appears under both.
    known = [name for name, _ in model.named_modules(remove_duplicate=False) if name in paths]
    return known + sorted(paths - set(known))


def _tensor_source(tensor: torch.Tensor) -> str:
    dtype = "" if tensor.dtype is torch.float32 else f", dtype={literal(tensor.dtype)}"
    shape = tuple(tensor.shape)
    empty = f"torch.empty({shape[0] if len(shape) == 1 else literal(shape)}{dtype})"
    if not isinstance(tensor, torch.nn.Parameter):
        return f"nn.Buffer({empty})"
    return f"nn.Parameter({empty}{'' if tensor.requires_grad else ', requires_grad=False'})"


def _is_tensor(child: str | Branch) -> bool:
    return isinstance(child, str) and child.startswith(("nn.Buffer(", "nn.Parameter("))


def tie_lines(root: Branch, ties: Mapping[str, str]) -> list[str]:
    """The statements that make one tensor of two names."""
    return [f"{access(root, name)} = {access(root, first)}" for name, first in ties.items()]
