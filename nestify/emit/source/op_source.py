"""How each op reads in a source file: as an operator, a method, or a public function of torch.

The tables hold ops whose public form takes the same arguments in the same order. They make a file
readable; they are not trusted: the file is run and compared bit for bit, and one that differs is
written again with every op as ``torch.ops.aten...``.
"""

from __future__ import annotations

import builtins
import math
import operator
from collections.abc import Callable, Mapping
from functools import cache
from types import BuiltinFunctionType, ModuleType
from typing import Any

import torch
import torch.nn.functional as F

from nestify.emit.source.literals import identifier, literal
from nestify.errors import UsageError

Names = Callable[[torch.fx.Node], str]

_INFIX = {
    "add.Tensor": "+", "sub.Tensor": "-", "mul.Tensor": "*", "div.Tensor": "/",
    "matmul.default": "@",
    "pow.Tensor_Scalar": "**", "pow.Tensor_Tensor": "**", "pow.Scalar": "**",
    "eq.Tensor": "==", "eq.Scalar": "==", "ne.Tensor": "!=", "ne.Scalar": "!=",
    "lt.Tensor": "<", "lt.Scalar": "<", "le.Tensor": "<=", "le.Scalar": "<=",
    "gt.Tensor": ">", "gt.Scalar": ">", "ge.Tensor": ">=", "ge.Scalar": ">=",
    "__and__.Tensor": "&", "__or__.Tensor": "|",
    "bitwise_and.Tensor": "&", "bitwise_or.Tensor": "|",
}  # fmt: skip
_PYTHON_INFIX = {
    operator.add: "+", operator.sub: "-", operator.mul: "*", operator.truediv: "/",
    operator.floordiv: "//", operator.mod: "%", operator.pow: "**", operator.matmul: "@",
    operator.and_: "&", operator.or_: "|", operator.eq: "==", operator.ne: "!=",
    operator.lt: "<", operator.le: "<=", operator.gt: ">", operator.ge: ">=",
}  # fmt: skip
_METHODS = frozenset(
    "chunk clone contiguous detach expand expand_as flatten mean permute repeat reshape "
    "reshape_as softmax split squeeze sum swapaxes transpose type_as unbind unflatten unsqueeze "
    "view view_as".split()
)
_METHOD_OVERLOADS = frozenset(
    ["to.dtype", "to.device", "split.Tensor", "softmax.int", "log_softmax.int"]
)
_FUNCTIONAL = frozenset(
    "adaptive_avg_pool2d adaptive_avg_pool3d avg_pool2d avg_pool3d gelu glu hardsigmoid hardswish "
    "hardtanh leaky_relu linear mish pad relu6 scaled_dot_product_attention silu softplus".split()
)
_INPLACE_FUNCTIONAL = frozenset(
    ["hardsigmoid_", "hardswish_", "hardtanh_", "leaky_relu_", "mish_", "silu_"]
)
# Namespaces whose ops are a part of torch itself; any other needs a package that the reader may not
# have.
_BUILTIN_OPS = frozenset(["aten", "prims", "quantized_decomposed"])
_OPEN_END = 2**63 - 1


def call_source(node: torch.fx.Node, name_of: Names, *, literal_ops: bool = False) -> str:
    """The expression that computes a call_function or call_method node.

    Raises:
        UsageError: the target is not a part of torch, or an argument has no spelling.
    """
    if node.op == "call_method":
        return _method(str(node.target), node.args, node.kwargs, name_of)
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload):  # pyright: ignore[reportPrivateUsage]
        return _op(target, node, name_of, literal_ops)
    if target is operator.neg:
        return f"-{literal(node.args[0], name_of)}"
    if target is operator.getitem:
        return f"{literal(node.args[0], name_of)}[{_index(node.args[1], name_of)}]"
    if target is getattr and isinstance(node.args[1], str) and identifier(node.args[1]):
        return f"{literal(node.args[0], name_of)}.{node.args[1]}"
    if target in _PYTHON_INFIX:
        return f" {_PYTHON_INFIX[target]} ".join(literal(a, name_of) for a in node.args)
    return f"{_public_name(target)}({_arguments(node.args, node.kwargs, name_of)})"


def is_size(node: torch.fx.Node) -> bool:
    """Whether a node computes a plain integer from shapes, not a tensor."""
    if str(node.target) == "aten.sym_size.int":
        return True
    inputs = node.all_input_nodes
    return node.target in _PYTHON_INFIX and bool(inputs) and all(is_size(one) for one in inputs)


def _op(target: Any, node: torch.fx.Node, name_of: Names, literal_ops: bool) -> str:
    namespace, full = str(target).split(".", 1)
    if namespace not in _BUILTIN_OPS:
        raise UsageError(
            f"op {target} of node {node.name!r} is not a part of torch, "
            "so model.py could not run alone; export .onnx or .pt2"
        )
    pretty = None if literal_ops or namespace != "aten" else _pretty(full, node, name_of)
    return pretty or f"torch.ops.{target}({_arguments(node.args, node.kwargs, name_of)})"


def _pretty(full: str, node: torch.fx.Node, name_of: Names) -> str | None:
    name, args, kwargs = full.split(".")[0], node.args, node.kwargs
    if full == "sym_size.int":
        return f"{literal(args[0], name_of)}.shape[{args[1]}]"
    if full in _INFIX and len(args) == 2 and not kwargs:
        return f" {_INFIX[full]} ".join(literal(a, name_of) for a in args)
    if full == "neg.default":
        return f"-{literal(args[0], name_of)}"
    if full in ("slice.Tensor", "select.int") and not kwargs:
        return _subscript(full, args, name_of)
    if name in _INPLACE_FUNCTIONAL and not kwargs:
        return f"F.{name[:-1]}({_arguments(args, {'inplace': True}, name_of)})"
    inplace = name.endswith("_") and not name.startswith("_") and hasattr(torch.Tensor, name)
    if (name in _METHODS or full in _METHOD_OVERLOADS or inplace) and args:
        return _method(name, args, kwargs, name_of)
    if name in _FUNCTIONAL:
        return f"F.{name}({_arguments(args, kwargs, name_of)})"
    # The builtins of torch are generated from the same table of signatures as the ops.
    if isinstance(getattr(torch, name, None), BuiltinFunctionType):
        return f"torch.{name}({_arguments(args, kwargs, name_of)})"
    return None


def _method(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], name_of: Names) -> str:
    if not identifier(name) or not isinstance(args[0], torch.fx.Node):
        raise UsageError(f"method {name!r} has no spelling in a source file; export .onnx or .pt2")
    return f"{name_of(args[0])}.{name}({_arguments(args[1:], kwargs, name_of)})"


def _subscript(full: str, args: tuple[Any, ...], name_of: Names) -> str:
    x, dim, *rest = args if len(args) > 1 else (*args, 0)
    if full == "select.int":
        inside = literal(rest[0], name_of)
    else:
        start, stop, step = (*rest, None, None, None)[:3]
        shown = [
            "" if v in (None, skip) else literal(v, name_of)
            for v, skip in ((start, 0), (stop, _OPEN_END))
        ]
        inside = ":".join(shown) + ("" if step in (None, 1) else f":{literal(step, name_of)}")
    before, after = (":, " * dim, "") if dim >= 0 else ("..., ", ", :" * (-dim - 1))
    return f"{literal(x, name_of)}[{before}{inside}{after}]"


def _index(index: Any, name_of: Names) -> str:
    parts = index if isinstance(index, tuple) and index else (index,)
    return ", ".join(_slice(part, name_of) for part in parts)


def _slice(part: Any, name_of: Names) -> str:
    if not isinstance(part, slice):
        return literal(part, name_of)
    ends = ["" if end is None else literal(end, name_of) for end in (part.start, part.stop)]
    return ":".join(ends) + ("" if part.step is None else f":{literal(part.step, name_of)}")


def _arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any], name_of: Names) -> str:
    shown = [literal(value, name_of) for value in args]
    for key, value in kwargs.items():
        if not identifier(key):
            raise UsageError(
                f"argument name {key!r} has no spelling in a source file; export .onnx or .pt2"
            )
        shown.append(f"{key}={literal(value, name_of)}")
    return ", ".join(shown)


def _public_name(target: Callable[..., Any]) -> str:
    try:
        return _public_names()[target]
    except (KeyError, TypeError):
        name = getattr(target, "__qualname__", repr(target))
        raise UsageError(
            f"function {name} is not a public function of torch, so model.py could not run alone; "
            "export .onnx or .pt2"
        ) from None


@cache
def _public_names() -> dict[Any, str]:
    names: dict[Any, str] = {
        f: f.__name__ for f in (builtins.max, builtins.min, builtins.int, builtins.float)
    }
    modules: tuple[tuple[str, ModuleType], ...] = (
        ("math", math),
        ("operator", operator),
        ("torch", torch),
        ("F", F),
    )
    for prefix, module in modules:
        for name in dir(module):
            value = getattr(module, name)
            if not name.startswith("_") and callable(value) and not isinstance(value, type):
                names[value] = f"{prefix}.{name}"
    return names
