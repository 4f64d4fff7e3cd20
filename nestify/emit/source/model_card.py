"""``README.md``: a model card with the front matter that model hubs read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from nestify.emit.call import Call
from nestify.emit.source.weights import State

_CARD = """---
{front}
---

# {name}

A network written out by nestify as plain PyTorch; `model.py` needs torch alone.

```python
from model import load

model = load()  # eval mode, weights.safetensors
```

| input | example shape | dtype |
|---|---|---|
{inputs}

| | |
|---|---|
{facts}
"""


def model_card(
    name: str, state: State, call: Call, names: Sequence[str], metadata: Mapping[str, str]
) -> str:
    """The text of the card: how to load the network, its inputs, its size, and what is known of it.

    >>> print(model_card("slim", State({}, {}), Call((), {}), (), {}).splitlines()[1])
    library_name: "pytorch"
    """
    front = {"library_name": "pytorch", "tags": ["nestify", "pytorch"]}
    elements = sum(tensor.numel() for tensor in state.tensors.values())
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.tensors.values())
    shapes = [
        f"| `{n}` | `{list(t.shape)}` | `{t.dtype}` |"
        for n, t in zip(names, call.tensors, strict=True)
    ]
    facts = [("values stored", f"{elements:,}"), ("bytes", f"{size:,}"), *sorted(metadata.items())]
    return _CARD.format(
        front="\n".join(f"{key}: {json.dumps(value)}" for key, value in front.items()),  # is YAML
        name=_cell(name),
        inputs="\n".join(shapes),
        facts="\n".join(f"| {_cell(key)} | {_cell(value)} |" for key, value in facts),
    )


def _cell(value: str) -> str:
    """Text that cannot leave its table cell, nor bring markup."""
    flat = " ".join(value.split())
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#" else c for c in flat)
