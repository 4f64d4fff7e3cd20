"""Fresh detectors of ultralytics: one activation in all blocks, strides in a constant, a training
mode that returns other outputs.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import nestify
from nestify.errors import NestifyWarning
from tests.zoo.wild_rows import yolo

pytestmark = pytest.mark.skipif(
    find_spec("ultralytics") is None, reason="ultralytics is not installed; make test installs it"
)


def norms(network: nn.Module) -> dict[str, torch.Tensor]:
    return {n: t.clone() for n, t in network.named_buffers() if n.endswith("running_mean")}


def loss_of(outputs: Any) -> torch.Tensor:
    return torch.stack([leaf.square().mean() for leaf in pytree.tree_leaves(outputs)]).sum()


@pytest.mark.parametrize("name", ["yolov8n", "yolo11n"])
@pytest.mark.filterwarnings("default")
def test_a_fresh_one_trains_shrinks_and_ships(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x, more = yolo(name).eval(), torch.randn(2, 3, 64, 64), torch.randn(3, 3, 64, 64)
    with pytest.warns(NestifyWarning, match=r"head\.py:\d+\) does in eval only"):
        nested = nestify.transform(model, "fn3-channel{where=all}", (x,))
    assert nested.graph.batch is not None
    assert nested.graph.coverage.params > 0.99
    for mine, theirs in zip(
        *map(pytree.tree_leaves, (nested.eval()(more), model(more))), strict=True
    ):
        assert torch.equal(mine, theirs)

    before = norms(nested)
    nested.train().activate(nested.space.largest())
    nested(x)
    model.train()(x)
    after, expected = norms(nested), norms(model)
    assert len(after) in (57, 81)
    assert not any(torch.equal(after[path], before[path]) for path in after)
    assert all(torch.equal(after[path], expected[path]) for path in after)

    slim = nested.extract(nested.space.at(0.5))
    assert sum(p.numel() for p in slim.parameters()) < 0.4 * sum(
        p.numel() for p in model.parameters()
    )
    report = nestify.export(slim, tmp_path / "slim.onnx", example_inputs=(x,))
    assert report.free_batch
    before = norms(slim)
    assert len(before) == len(after)
    loss_of(slim.train()(x)).backward()
    assert not any(torch.equal(norm, before[path]) for path, norm in norms(slim).items())
    read = [p.grad for p in slim.parameters() if p.requires_grad]
    assert all(grad is not None for grad in read)
