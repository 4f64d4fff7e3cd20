"""The laws of one model of the zoo: nested = extracted = the original with the rest silenced."""

from __future__ import annotations

import random
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import nestify
from nestify.dims.selection import Keep
from nestify.errors import NestifyWarning
from nestify.nested.model import NestedModel
from nestify.support.closeness import relative_error
from tests.fuzz.oracle import flat_inputs, silenced
from tests.fuzz.training_step import apart, trained
from tests.laws.equalities import EVERYTHING
from tests.zoo.model import Arguments

SUBNETS = 5
NOTICED = 1e-6  # the least change of the output that proves that something was removed


def compiled(model: nn.Module, inputs: Arguments) -> tuple[NestedModel, list[str]]:
    """The nested model with every elastic group a unit, and what was said of training."""
    args, kwargs = inputs
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always", NestifyWarning)
        nested = nestify.transform(model, EVERYTHING, args, kwargs).eval()
    return nested, [str(n.message) for n in notes if issubclass(n.category, NestifyWarning)]


def check_training_step(
    model: nn.Module, nested: NestedModel, inputs: Arguments, notes: list[str]
) -> None:
    """Assert that a step of the largest subnet is the original's in outputs, gradients and buffers,
    where no warning names what differs.
    """
    if notes:
        return
    args, kwargs = inputs
    with nested.activate(nested.space.largest()):
        where, error = apart(trained(model, args, kwargs), trained(nested, args, kwargs))
    assert error <= tolerance(nested), f"{where}: {error:.1e} from the original's"


def check_zoo_laws(
    model: nn.Module, nested: NestedModel, inputs: Arguments, other: Arguments, seed: int = 0
) -> float:
    """Assert every equality on random subnets and kept positions; return the largest error.

    ``other`` is a batch of another size, run where the batch is free.
    """
    limit = tolerance(nested)
    batches = [inputs, *([other] if nested.graph.batch is not None else [])]
    for args, kwargs in batches:
        full = relative_error(model(*args, **kwargs), nested(*args, **kwargs))
        assert full <= limit / 10, f"the largest subnet differs from the original by {full:.1e}"
    if nested.graph.batch is None:
        _check_refusal(nested, other)
    generator, draw, worst = torch.Generator().manual_seed(seed), random.Random(seed), 0.0
    with torch.no_grad():
        for _ in range(SUBNETS):
            subnet = nested.space.sample(generator)
            slim = nested.extract(subnet, verify=False)
            with nested.activate(subnet):
                for args, kwargs in batches:
                    error = relative_error(nested(*args, **kwargs), slim(*args, **kwargs))
                    assert error <= limit, f"nested and extracted differ by {error:.1e}: {subnet}"
                    worst = max(worst, error)
            worst = max(worst, _against_original(nested, nested.keep(subnet), slim, limit))
            picks = _positions(nested, draw)
            slim = nested.extract(picks, verify=False)
            worst = max(worst, _against_original(nested, nested.keep(picks), slim, limit))
    return worst


def _check_refusal(nested: NestedModel, other: Arguments) -> None:
    """A batch that is not free is refused at another size, with a reason."""
    assert nested.graph.batch_reason, "the batch is fixed for no reason"
    slim = nested.extract(nested.space.largest(), verify=False)
    for network, kind in ((nested, nestify.UsageError), (slim, AssertionError)):
        with pytest.raises(kind) as error:
            network(*other[0], **other[1])
        assert nested.graph.batch_reason in str(error.value)


def tolerance(nested: NestedModel) -> float:
    """1e-10 where all is float64, 1e-5 where the model itself computes in less."""
    dtypes = {
        value.dtype
        for node in nested.graph.nodes
        for value in pytree.tree_leaves(node.meta.get("val"))
        if isinstance(value, torch.Tensor) and value.is_floating_point()
    }
    return 1e-10 if dtypes == {torch.float64} else 1e-5


def _positions(nested: NestedModel, draw: random.Random) -> dict[str, Any]:
    """Any kept positions of every group and any blocks of every stack, in their order."""
    sizes = {group.name: group.size for group in nested.graph.groups}
    sizes |= {name: len(moves) for name, moves in nested.graph.moves.items() if len(moves) > 1}
    return {
        name: torch.tensor(sorted(draw.sample(range(size), draw.randint(1, size))))
        for name, size in sizes.items()
    }


def _against_original(nested: NestedModel, keep: Keep, slim: nn.Module, limit: float) -> float:
    """Extracted against the original with what ``keep`` leaves out silenced."""
    args, kwargs = nested.example_inputs, nested.example_kwargs
    tensors, flat = dict(nested.named_tensors()), flat_inputs(args, kwargs)
    masked = silenced(nested.graph, tensors, keep, flat)
    error = relative_error(masked, pytree.tree_leaves(slim(*args, **kwargs)))
    assert error <= limit, f"extracted and silenced original differ by {error:.1e}"
    whole = silenced(nested.graph, tensors, Keep({}), flat)
    assert relative_error(whole, masked) > NOTICED, "what is removed does not show in the output"
    return error
