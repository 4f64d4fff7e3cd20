"""One op call under analysis: its arguments by name, its tensors' dims, and what its rule found."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from torch import fx
from torch._ops import OpOverload

from nestify import dims
from nestify.dims import Const, Expr, Kind, Reason

Dims = tuple[Expr, ...]
Literal = Expr | int | tuple["Expr | int | None", ...]


@cache
def op_name(target: Any) -> str:
    """Name an op as the table does: no namespace for ATen, no overload, no in-place underscore.

    >>> import operator, torch
    >>> op_name(torch.ops.aten.relu_.default), op_name(operator.getitem)
    ('relu', 'getitem')
    """
    if isinstance(target, OpOverload):
        space, _, name = target.name().partition("::")
        name, _, _ = name.partition(".")
        name = name if name.startswith("__") else name.rstrip("_")
        return name if space == "aten" else f"{space}::{name}"
    return getattr(target, "__name__", str(target))


@cache
def _schema(target: OpOverload) -> tuple[tuple[str, Any], ...]:
    """Argument names and defaults; torch gives a schema under a private name only."""
    arguments = target._schema.arguments  # pyright: ignore[reportPrivateUsage]
    return tuple(
        (arg.name, arg.default_value if arg.has_default_value() else None) for arg in arguments
    )


def bind_arguments(node: fx.Node) -> dict[str, Any]:
    """Return the arguments of a call by their schema names, defaults filled in."""
    if not isinstance(node.target, OpOverload):
        return {str(i): arg for i, arg in enumerate(node.args)}
    schema = _schema(node.target)
    bound = dict(schema)
    for (name, _), value in zip(schema, node.args, strict=False):
        bound[name] = value
    bound.update(node.kwargs)
    return bound


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Shape of the tensor that ``node`` gives."""
    return tuple(int(n) for n in node.meta["val"].shape)


def is_mutable(node: fx.Node) -> bool:
    """Whether the call writes into one of its operands."""
    return bool(getattr(getattr(node.target, "_schema", None), "is_mutable", False))


class Call:
    """What a rule reads (``args``, :meth:`dims`, ``out_shape``) and what it writes.

    ``out``         dims of the output; a tuple of them where the op returns several tensors
    ``literals``    argument name -> the expressions whose sizes that argument spells out
    ``contracted``  dims summed away, as (tensor node, dim): silencing a position there removes it
    ``normalised``  expressions whose statistics the op takes: a smaller net has its own
    ``macs``        one tuple of expressions per multiply-accumulate loop nest
    ``numbered``    expressions whose positions are told apart by number, and the reason why
    ``plural``      expressions that must not all shrink to one position, and the reason why
    """

    def __init__(self, node: fx.Node, known: Mapping[fx.Node, Any]) -> None:
        self.node = node
        self.op = op_name(node.target)
        self.args = bind_arguments(node)
        self._known = known
        self._fixes = False
        self.out: Any = None
        self.literals: dict[str, Literal] = {}
        self.contracted: list[tuple[fx.Node, int]] = []
        self.normalised: list[Expr] = []
        self.macs: list[tuple[Expr, ...]] = []
        self.numbered: list[tuple[Expr, Reason]] = []
        self.plural: list[tuple[tuple[Expr, ...], Reason]] = []

    # --- reading ----------------------------------------------------------------------------------

    def dims(self, name: str) -> Dims | None:
        """Dims of a tensor argument, or None where the argument is not a tensor."""
        value = self.args.get(name)
        return self.dims_of(value) if isinstance(value, fx.Node) else None

    def need(self, name: str) -> Dims:
        """Dims of a tensor argument that must be there."""
        found = self.dims(name)
        if found is None:
            raise ValueError(f"{self.op} needs a tensor argument {name!r}")
        return found

    def dims_of(self, node: fx.Node) -> Dims:
        """Dims of the tensor that ``node`` gives."""
        return self._known[node]

    def tensors(self) -> list[fx.Node]:
        """Every tensor among the arguments, in order, also those in lists."""
        found: list[fx.Node] = []
        for value in self.args.values():
            items: Sequence[Any] = value if isinstance(value, list | tuple) else (value,)
            found.extend(item for item in items if isinstance(item, fx.Node))
        return found

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Real shape of the (first) output in the example run."""
        val = self.node.meta["val"]
        return tuple(int(n) for n in (val[0] if isinstance(val, list | tuple) else val).shape)

    def axis(self, name: str, rank: int) -> int:
        """A dim argument counted from the front."""
        value = self.args[name]
        return value % rank if rank else 0

    # --- writing ----------------------------------------------------------------------------------

    def give(self, dims: Dims) -> None:
        """Set the dims of the output, or of each output where the op returns several tensors."""
        val = self.node.meta["val"]
        self.out = (dims,) * len(val) if isinstance(val, list | tuple) else dims

    def why(self, text: str, kind: Kind = "positions") -> Reason:
        """The reason that this call gives for a dim it fixes."""
        return Reason(self.node.name, self.op, text, kind)

    def unify(self, a: Expr, b: Expr, text: str = "meets a dim of constant size") -> None:
        """Make ``a`` and ``b`` one dim; ``text`` is the reason where that fixes them."""
        dims.unify(a, b, self.why(text, "constant"))

    def fix(self, expr: Expr, text: str, kind: Kind = "positions") -> None:
        """Make ``expr`` constant, for the reason given and of the kind that tells what frees it."""
        self._fixes = self._fixes or any(True for _ in dims.dims_of(expr))
        dims.fix(expr, self.why(text, kind))

    def number(self, expr: Expr, text: str) -> None:
        """Note that positions of ``expr`` are told apart by number: only the batch may be that.

        Whether it is the batch shows at the end of the analysis; what is not is fixed then.
        """
        self.numbered.append((expr, self.why(text)))

    def constant(self, size: int, text: str) -> Const:
        """A new dim of constant size; where the call fixed a dim, what this one meets is fixed for
        the same reason, ``text``.
        """
        return Const(size, self.why(text) if self._fixes else None)

    def split(self, expr: Expr, k: int) -> tuple[Expr, Expr]:
        """Cut ``expr`` after ``k`` positions."""
        return dims.split(
            expr, k, self.why("cuts at a position that no refinement explains", "parts")
        )

    def factor(self, expr: Expr, m: int) -> tuple[Expr, Expr]:
        """Read ``expr`` as ``m`` rows."""
        return dims.factor(
            expr, m, self.why("reads it in parts that no refinement explains", "parts")
        )

    def contract(self, name: str, dim: int) -> None:
        """Note that the op sums over dim ``dim`` of tensor argument ``name``."""
        node = self.args[name]
        self.contracted.append((node, dim % len(self.dims_of(node))))

    def broadcast(self, shapes: Sequence[Dims]) -> list[Expr]:
        """Unify dims aligned from the right, dims of size 1 stretched; return the result's dims."""
        rank = max((len(shape) for shape in shapes), default=0)
        out: list[Expr] = []
        for i in range(-rank, 0):
            column = [shape[i] for shape in shapes if len(shape) >= -i]
            wide = [expr for expr in column if expr.size != 1]
            for other in wide[1:]:
                self.unify(wide[0], other)
            out.append(wide[0] if wide else column[0])
        return out


def fix_plural(calls: Iterable[Call]) -> None:
    """Fix dims that would leave a call a single position where it needs more."""
    for call in calls:
        for exprs, why in call.plural:
            found = [dim for expr in exprs for dim in dims.dims_of(expr) if not dim.batch]
            if math.prod(map(_least, exprs)) < 2:
                for dim in found:
                    dims.fix(dim, why)


def _least(expr: Expr) -> int:
    """The smallest size that a dim can shrink to."""
    found = dims.resolve(expr)
    if isinstance(found, dims.Dim):
        return 1
    if isinstance(found, dims.Const):
        return found.size
    parts = found.parts if isinstance(found, dims.Concat) else found.factors
    sizes = [_least(part) for part in parts]
    return sum(sizes) if isinstance(found, dims.Concat) else math.prod(sizes)


def fix_numbered(calls: Iterable[Call]) -> None:
    """Fix what calls tell apart by number, except the batch: the same call on another batch size
    means the same there.
    """
    for call in calls:
        for expr, why in call.numbered:
            for dim in [dim for dim in dims.dims_of(expr) if not dim.batch]:
                dims.fix(dim, why)
