"""``model.py``: a plain module with its constructor calls, its straight forward, and its own
loader.
"""

from __future__ import annotations

import torch

from nestify.emit.source.forward import Forward, forward_of
from nestify.emit.source.literals import literal, text
from nestify.emit.source.module_source import Branch, access, assignments, tie_lines, tree_of
from nestify.emit.source.weights import State, state_of

_HEAD = '''"""A network written out by nestify; it needs torch and nothing else.

    from model import load
    model = load()                # reads weights.safetensors beside this file
    output = model({inputs})
"""

{imports}

'''
_GROUP = '''
class Group(nn.Module):
    """Modules and tensors by name, so that state_dict() keeps the names of the original model."""

    def __init__(self, /, **children: nn.Module | torch.Tensor) -> None:
        super().__init__()
        for name, child in children.items():
            setattr(self, name, child)

    def __getitem__(self, name: str) -> nn.Module:
        return getattr(self, name)

'''
_LOADER = '''
def load(weights: str | Path = "weights.safetensors") -> Model:
    """The network with its weights, in eval mode; a relative path is looked up beside this file."""
    state = _read_safetensors(Path(__file__).parent / weights)
{tied}    model = Model()
    model.load_state_dict(state)
    return model.eval()


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    # The format: 8 bytes of header length, a JSON header with dtype, shape and place, then the raw
    # data.
    dtypes = {dtypes}
    data = torch.from_file(str(path), size=path.stat().st_size, dtype=torch.uint8)
    start = 8 + int.from_bytes(bytes(data[:8].tolist()), "little")
    header = json.loads(bytes(data[8:start].tolist()))
    tensors = {{}}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            raw = data[start + begin : start + end].view(dtypes[entry["dtype"]])
            tensors[name] = raw.reshape(entry["shape"])
    return tensors
'''
_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL",
}  # fmt: skip


def model_source(module: torch.fx.GraphModule, *, literal_ops: bool = False) -> tuple[str, State]:
    """The text of ``model.py`` for a graph module, and the tensors that it loads.

    >>> text, state = model_source(torch.fx.symbolic_trace(torch.nn.Sequential(torch.nn.ReLU())))
    >>> "nn.ReLU()" in text
    True

    Raises:
        UsageError: a node, a module or a value has no spelling in plain torch.
    """
    nodes = list(module.graph.nodes)
    called = [str(node.target) for node in nodes if node.op == "call_module"]
    fetched = [str(node.target) for node in nodes if node.op == "get_attr" and node.users]
    tree, names = tree_of(module, called, fetched)
    state = state_of(module, names)
    forward = forward_of(module.graph, lambda path: access(tree, path), literal_ops=literal_ops)
    body = _class(tree, state, forward)
    head = _HEAD.format(
        inputs=", ".join(p.split(":")[0].split("=")[0] for p in forward.parameters),
        imports=_imports(body),
    )
    group = _GROUP if tree.needs_group else ""
    return head + group + body + _loader(state), state


def _class(tree: Branch, state: State, forward: Forward) -> str:
    setup = ["super().__init__()", *assignments(tree), *tie_lines(tree, state.ties)]
    parameters = ", ".join(["self", *forward.parameters])
    lines = [
        "class Model(nn.Module):",
        '    """The network; module names are those of the original model."""',
        "",
        "    def __init__(self) -> None:",
        *(f"        {line}" for line in setup),
        "",
        f"    def forward({parameters}):",
        *(f"        {line}" for line in forward.statements),
        f"        return {forward.result}",
        "",
    ]
    return "\n" + "\n".join(lines) + "\n"


def _imports(body: str) -> str:
    lines = ["from __future__ import annotations", "", "import json"]
    lines += [f"import {name}" for name in ("math", "operator") if f"{name}." in body]
    lines += ["from pathlib import Path", "", "import torch"]
    lines += ["import torch.nn.functional as F"] if "F." in body else []
    return "\n".join([*lines, "from torch import nn"])


def _loader(state: State) -> str:
    used = {tensor.dtype for tensor in state.tensors.values()}
    for dtype in used:
        literal(dtype) if dtype in _DTYPES else _DTYPES[dtype]
    table = ", ".join(f'"{_DTYPES[d]}": {literal(d)}' for d in _DTYPES if d in used)
    tied = "".join(
        f"    state[{text(name)}] = state[{text(first)}]\n" for name, first in state.ties.items()
    )
    return _LOADER.format(tied=tied, dtypes="{" + table + "}")
