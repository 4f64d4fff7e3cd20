"""Forms that compute with the batch size: what a trace bakes in, and what it may not."""

from __future__ import annotations

from tests.fuzz.forms import Form, Part

__all__ = ["BATCH_FORMS"]

BATCH_FORMS: dict[str, Form] = {}


def form(name: str, text: str, weight: float = 0.5, /, **parts: Part) -> None:
    """Enter a form as ``op`` or ``op:mode``."""
    assert name not in BATCH_FORMS, name
    BATCH_FORMS[name] = Form(text, weight, **parts)


_ROWS = {"x": "t: n *s"}

form("div:batch", "{x} / {x}.shape[0]", **_ROWS)
form("mul:batch", "{x} * len({x})", **_ROWS)
form("sub:centred", "{x} - {x}.sum(0, keepdim=True) / {x}.shape[0]", **_ROWS)
form("pow:batch", "{x} * 0.5 ** {x}.shape[0]", 0.25, **_ROWS)
form("roll:batch", "{x}.roll({x}.shape[0] // 2, 0)", **_ROWS)
form("stack:samples", "torch.stack([row * 2 for row in {x}])", 0.25, **_ROWS)
form("cat:samples", "torch.cat([{x}[:1], {x}[1:]])", 0.25, **_ROWS)
form("index:samples", "{x}[torch.arange({x}.shape[0])]", **_ROWS)
form("arange:samples", "{x} + torch.arange({x}.shape[0]).unsqueeze(-1)", x="t: n c")
form("full:batch", "{x} + torch.full(({x}.shape[0], 1), 0.5)", x="t: n c")
form("view:batch", "{x}.reshape({x}.shape[0], -1)", x="t: n c *s")
form("view:squares", "{x}.reshape({x}.shape[0] * {c}, -1)", 0.25, x="t: n c w")
form("select:last", "{x} + {x}[{x}.shape[0] - 1]", 0.25, **_ROWS)
