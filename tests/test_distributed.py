"""Two processes: ranks draw the same subnets without a word, and train as one process would."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import nestify
from nestify.training import step

WORLD, STEPS = 2, 4
RECIPE = "fn3-layer+fn3-neuron{where=all,draw=uniform}"


class Net(nn.Module):
    """Residual layers that may be dropped, without statistics of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 16)
        self.up = nn.ModuleList(nn.Linear(16, 24) for _ in range(3))
        self.down = nn.ModuleList(nn.Linear(24, 16) for _ in range(3))
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(F.relu(up(x)))
        return self.head(x)


def make(seed: int) -> nestify.NestedModel:
    torch.manual_seed(0)
    net = Net()
    torch.manual_seed(seed)
    return nestify.transform(net, RECIPE, (torch.zeros(2, 6),)).train()


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(STEPS, 8, 6, generator=generator), torch.arange(8) % 4


def ddp(nested: nestify.NestedModel) -> nn.Module:
    # Parameters of dropped layers have no gradient in a step: DDP wants to be told.
    return DistributedDataParallel(nested, find_unused_parameters=True)


def fsdp(nested: nestify.NestedModel) -> nn.Module:
    return fully_shard(nested)


def run(net: nn.Module, nested: nestify.NestedModel, method: str, rank: int | None) -> list[str]:
    """Train for a few steps, on a part of each batch where there are ranks; the subnets drawn."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    inputs, labels = data()
    part = slice(None) if rank is None else slice(rank * 4, rank * 4 + 4)
    drawn = []
    for x in inputs:
        optimizer.zero_grad()
        step(net, x[part], labels[part], F.cross_entropy, method)
        optimizer.step()
        assert nested.drawn is not None
        drawn.append(nested.drawn.to_json())
    return drawn


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def worker(
    rank: int, port: int, wrap: Callable[[nestify.NestedModel], nn.Module], method: str, out: str
) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    # DDP hands the state of rank 0 around; for FSDP all ranks are seeded alike, as for its weights.
    nested = make(100 + rank if wrap is ddp else 100)
    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    try:
        net = wrap(nested)
        torch.manual_seed(1000 + rank)  # as for data that differ between ranks
        drawn = run(net, nested, method, rank)
        weights = {name: whole(p) for name, p in nested.named_parameters()}
        torch.save({"drawn": drawn, "weights": weights}, f"{out}/{rank}.pt")
        dist.barrier()  # no rank takes its connections down while the other one uses them
    finally:
        dist.destroy_process_group()
    os._exit(0)  # gloo's threads may outlive their owner at exit, which aborts once in a while


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["odo", "sandwich"])
@pytest.mark.parametrize("wrap", [ddp, fsdp], ids=["ddp", "fsdp2"])
def test_two_ranks_train_as_one_process(
    wrap: Callable[[nestify.NestedModel], nn.Module], method: str, tmp_path: Path
) -> None:
    context = mp.spawn(worker, (free_port(), wrap, method, str(tmp_path)), nprocs=WORLD, join=False)
    assert context is not None
    deadline = time.monotonic() + 600
    while not context.join(timeout=5):
        if time.monotonic() > deadline:
            for process in context.processes:
                process.kill()
            pytest.fail("a rank waits for the other one")
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(WORLD)]
    assert ranks[0]["drawn"] == ranks[1]["drawn"]
    assert any('"layers": 1' in text or '"layers": 2' in text for text in ranks[0]["drawn"])
    nested = make(100)
    nested.draws.restart(100)
    assert run(nested, nested, method, None) == ranks[0]["drawn"]
    for name, parameter in nested.named_parameters():
        for rank in ranks:
            torch.testing.assert_close(rank["weights"][name], parameter.detach(), msg=name)
