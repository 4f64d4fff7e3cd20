"""Training a nested network trains the prefix that is active, and what is extracted later."""

from __future__ import annotations

import copy

import torch

from tests.emit.module.networks import resnet


def test_gradients_stay_in_the_active_prefix() -> None:
    nested = resnet()
    nested.train()
    subnet = nested.space.at(0.5)
    before = {name: p.detach().clone() for name, p in nested.named_parameters()}
    slim = nested.extract(subnet)
    optimizer = torch.optim.SGD(nested.parameters(), lr=0.1)
    with nested.activate(subnet):
        nested(torch.randn(4, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    for name, parameter in nested.named_parameters():
        inside = torch.zeros_like(parameter, dtype=torch.bool)
        inside[tuple(slice(0, n) for n in slim.get_parameter(name).shape)] = True
        assert parameter.grad is not None
        assert not parameter.grad[~inside].any(), name
        assert torch.equal(parameter[~inside], before[name][~inside])
        changed = not torch.equal(parameter[inside], before[name][inside])
        assert changed or name == "stem.0.bias"  # BatchNorm takes a bias before it away


def test_training_reaches_the_extracted_network() -> None:
    nested = resnet()
    nested.train()
    nested(torch.randn(4, 3, 8, 8)).sum().backward()
    torch.optim.SGD(nested.parameters(), lr=0.1).step()
    slim = nested.extract(nested.space.largest())
    for name, tensor in slim.state_dict().items():
        assert torch.equal(tensor, nested.state_dict()[name]), name
    assert int(slim.get_buffer("stem.1.num_batches_tracked")) == 1


def test_a_copy_trains_by_itself() -> None:
    nested = resnet()
    twin = copy.deepcopy(nested)
    state = copy.deepcopy(nested.state_dict())
    twin.train()
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    for _ in range(3):
        twin(torch.randn(4, 3, 8, 8)).square().sum().backward()
        optimizer.step()
    for name, tensor in nested.state_dict().items():
        assert torch.equal(tensor, state[name])
    assert not torch.equal(twin.fc.weight, nested.fc.weight)
    twin.activate(twin.space.smallest())
    assert nested.active == nested.space.largest()
    assert twin.graph is nested.graph


def test_each_step_draws_a_subnet_from_the_random_state() -> None:
    nested = resnet()
    nested.train()
    x = torch.randn(4, 3, 8, 8)
    outs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outs.append(nested(x))
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])


def test_activation_is_restored() -> None:
    nested = resnet()
    small, half = nested.space.smallest(), nested.space.at(0.5)
    nested.activate(half)
    with nested.activate(small) as inside:
        assert inside.active == small
    assert nested.active == half
    nested.activate(None)
    assert nested.active == nested.space.largest()
