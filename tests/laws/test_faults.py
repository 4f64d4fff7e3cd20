"""The laws must be able to fail: op rules are broken one at a time, and each must be caught."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nestify.dims import Const, Product, concat, product, resolve
from nestify.rules import OPS, Call
from nestify.rules.notation import Line
from tests.laws.equalities import check_laws


class Shuffle(nn.Module):
    """Convolutions side by side, shuffled, grouped, cut, attended: every op with a fault."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 8, 3)
        self.grouped = nn.Conv2d(12, 12, 3, groups=4, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.up = nn.ConvTranspose2d(12, 8, 2, groups=2)
        self.qkv = nn.Linear(8, 24)
        self.head = nn.Linear(8 * 25, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.left(x), self.right(x)], 1)
        x = x.view(x.shape[0], 3, 4, 4, 4).transpose(1, 2).reshape(x.shape[0], 12, 4, 4)
        x = F.relu(self.norm(self.grouped(x)))
        x = self.up(torch.cat([x[:, 6:], x[:, :6]], 1))
        a, b = x.split([3, 5], 1)
        x = torch.cat([b, a], 1).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(x).view(x.shape[0], 25, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.head(x.flatten(1))


def model() -> nn.Module:
    torch.manual_seed(0)
    net = Shuffle().double()
    nn.init.uniform_(net.norm.weight, 0.5, 1.5)
    nn.init.uniform_(net.norm.running_var, 0.5, 1.5)
    return net


INPUTS = (torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),)


def cat_backwards(call: Call) -> None:
    BEFORE["cat"](call)
    at = call.axis("dim", len(call.out_shape))
    parts = [resolve(call.dims_of(t)[at]) for t in reversed(call.args["tensors"])]
    call.out = (*call.out[:at], concat(parts), *call.out[at + 1 :])


def reshape_column_major(call: Call) -> None:
    BEFORE["reshape"](call)
    swapped = [
        product(reversed(e.factors)) if isinstance(e := resolve(expr), Product) else e
        for expr in call.out
    ]
    call.out = tuple(swapped)


def transpose_not_at_all(call: Call) -> None:
    BEFORE["transpose"](call)
    call.out = tuple(
        next((e for e in call.need("self") if e.size == want.size), want) for want in call.out
    )


def slice_from_the_front(call: Call) -> None:
    BEFORE["slice"](call)
    at = call.axis("dim", len(call.need("self")))
    first, _ = call.split(call.need("self")[at], call.out[at].size)
    call.out = (*call.out[:at], first, *call.out[at + 1 :])


def split_without_literals(call: Call) -> None:
    BEFORE["split_with_sizes"](call)
    call.literals.clear()


def constants_for_all(call: Call) -> None:
    """Claims that the output is constant although the inputs stay elastic."""
    call.out = tuple(Const(n) for n in call.out_shape)


def grouped(line: str) -> Line:
    return Line(
        line,
        ("input", "weight", "bias"),
        sizes={"g": "groups"},
        literals={"groups": "g"},
        contracts="i",
        macs="n g o *t i *k",
    )


BEFORE: dict[str, Any] = {name: row.rule for name, row in OPS.items()}
FAULTS: dict[str, tuple[str, Callable[[Call], None]]] = {
    "cat in the wrong order": ("cat", cat_backwards),
    "reshape as column-major": ("reshape", reshape_column_major),
    "transpose ignored": ("transpose", transpose_not_at_all),
    "slice from the front": ("slice", slice_from_the_front),
    "split sizes not respelled": ("split_with_sizes", split_without_literals),
    "batch norm forgets its tensors": (
        "batch_norm",
        Line("n c *s -> n c *s", ("input",)),
    ),
    "groups inside out": ("conv2d", grouped("n (g i) *s, (o g) i *k, (g o) -> n (g o) *t")),
    "bias forgotten": (
        "conv2d",
        Line(
            "n (g i) *s, (g o) i *k -> n (g o) *t",
            ("input", "weight"),
            sizes={"g": "groups"},
            literals={"groups": "g"},
            contracts="i",
        ),
    ),
    "groups not respelled": (
        "conv2d",
        Line(
            "n (g i) *s, (g o) i *k, (g o) -> n (g o) *t",
            ("input", "weight", "bias"),
            sizes={"g": "groups"},
            contracts="i",
        ),
    ),
    "transposed weights as plain ones": (
        "conv_transpose2d",
        grouped("n (g i) *s, (g o) i *k, (g o) -> n (g o) *t"),
    ),
    "linear output is constant": ("linear", constants_for_all),
    "attention output is constant": ("scaled_dot_product_attention", constants_for_all),
}


def test_the_model_itself_obeys_the_laws() -> None:
    assert check_laws(model(), INPUTS, subnets=3) >= 5


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    op, rule = FAULTS[fault]
    clean = check_laws(model(), INPUTS, subnets=1)
    monkeypatch.setitem(OPS, op, replace(OPS[op], rule=rule))
    try:
        groups = check_laws(model(), INPUTS, subnets=3)
    except Exception:
        return
    # A rule that no call fits is refused by its output sizes: dims are fixed, which is safe.
    assert groups < clean, f"{fault}: nothing noticed"
