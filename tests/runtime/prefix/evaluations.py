"""Evaluations that may reuse others, and what they are compared with bit for bit."""

from __future__ import annotations

import copy
import random
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import nestify
from nestify.runtime.tensor_identity import same_bits
from tests.runtime.prefix.subjects import SUBJECTS, Batch

Outputs = list[list[Tensor]]


def nest(name: str) -> tuple[nestify.NestedModel, list[Batch]]:
    """A nested model in eval, its weights away from where norms and gates are still, and data."""
    subject = SUBJECTS[name]
    torch.manual_seed(0)
    batches = [subject.batch(4), subject.batch(4), subject.batch(3)]
    model = subject.model()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand_like(tensor))
    nested = nestify.transform(model, subject.recipe, batches[0])
    return nested.eval(), batches


def chain(layers: int = 6, width: int = 8) -> nestify.NestedModel:
    """Linear layers with an activation behind each; every inner width is a unit."""
    torch.manual_seed(0)
    pairs = [nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(layers)]
    return nestify.transform(nn.Sequential(*pairs), "fn3-neuron", (torch.ones(2, width),)).eval()


def neighbours(space: nestify.SearchSpace, count: int, seed: int = 0) -> list[nestify.Subnet]:
    """A random walk: each subnet differs from one before it in one or two units."""
    draw = random.Random(seed)
    found = [space.largest()]
    for _ in range(count - 1):
        sizes = dict(draw.choice(found[-3:]))
        for unit in draw.sample(space.units, min(draw.randint(1, 2), len(space.units))):
            sizes[unit.name] = draw.choice(unit.choices)
        found.append(nestify.Subnet(sizes))
    return found


def evaluate(nested: nestify.NestedModel, batches: list[Batch]) -> Outputs:
    """Flat outputs of each batch; inputs are new tensors each time, as a loader's are."""
    clones = [tuple(x.clone() for x in batch) for batch in batches]
    return [[y.clone() for y in pytree.tree_leaves(nested(*clone))] for clone in clones]


def plainly(nested: nestify.NestedModel, *inputs: Tensor) -> Any:
    """The same evaluation by a copy, which reuses nothing."""
    return copy.deepcopy(nested)(*inputs)


def same(left: Any, right: Any) -> bool:
    """Equal bit for bit, in the same layout."""
    a, b = pytree.tree_leaves(left), pytree.tree_leaves(right)
    return len(a) == len(b) and all(
        (x.shape, x.dtype, x.stride()) == (y.shape, y.dtype, y.stride()) and same_bits(x, y)
        for x, y in zip(a, b, strict=True)
    )
