"""The paper's masks: the function of slices where they follow the norm; one graph to compile."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounter

import nestify
from tests.graph.test_residual_blocks import Stage
from tests.nested.test_training import classes, gradients

HIDDEN = "fn3-channel+fn3-neuron+fn3-head+fn3-path"


def alike(name: str) -> tuple[nestify.NestedModel, torch.Tensor, torch.Tensor]:
    nested, x, y = classes(name)
    nested = nestify.transform(nested.graph.capture.model.double(), HIDDEN, (x.double(),))
    return nested.train(), x.double(), y


@pytest.mark.parametrize("name", ["block", "encoder", "bn", "bn 1d"])
@pytest.mark.parametrize("seed", range(2))
def test_masks_after_the_norm_are_slices(name: str, seed: int) -> None:
    nested, x, _y = alike(name)
    masked = nested.masked()
    subnet = nested.space.sample(torch.Generator().manual_seed(seed))
    results = []
    for net in (nested, masked):
        nested.zero_grad()
        with nested.activate(subnet):
            out = net(x)
        out.square().sum().backward()
        results.append((out, {k: g.clone() for k, g in gradients(nested).items()}))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-10, atol=1e-12)
    for key, grad in results[0][1].items():
        torch.testing.assert_close(grad, results[1][1][key], rtol=1e-9, atol=1e-11, msg=key)
    masked.eval()
    with nested.activate(subnet):
        torch.testing.assert_close(nested(x), masked(x), rtol=1e-10, atol=1e-12)


def test_dropped_layers_are_masked_branches() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8)
    nested = nestify.transform(Stage(), "fn3-layer+fn3-channel", (x,)).eval()
    masked = nested.masked()
    for seed in range(4):
        with nested.activate(nested.space.sample(torch.Generator().manual_seed(seed))):
            torch.testing.assert_close(nested(x), masked(x))


@pytest.mark.parametrize("recipe", ["fn3-layer", "fn3-channel", "fn3-layer+fn3-channel"])
def test_buffers_of_what_is_absent_stay_as_they_were(recipe: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8).double()
    nested = nestify.transform(Stage().double(), recipe, (x,)).train()
    twin = copy.deepcopy(nested)
    masked = nested.masked()
    for seed in range(5):
        subnet = nested.space.sample(torch.Generator().manual_seed(seed))
        with twin.activate(subnet), nested.activate(subnet):
            masked(x + seed).sum().backward()
            twin(x + seed).sum().backward()
    for (name, mine), (_, expected) in zip(
        nested.named_buffers(), twin.named_buffers(), strict=True
    ):
        if name != "_draws":
            torch.testing.assert_close(mine, expected, msg=name)


@pytest.mark.parametrize("before", [False, True])
def test_a_deep_copy_is_a_network_of_its_own(before: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8).double()
    nested = nestify.transform(Stage().double(), "fn3-layer+fn3-channel", (x,)).train()
    vars(next(nested.parameters()))["no_decay"] = True
    masked = nested.masked(before_norm=before)
    next(m for m in masked.network.modules() if isinstance(m, nn.BatchNorm2d)).eval()
    twin = copy.deepcopy(masked)
    assert [id(p) for p in twin.parameters()] == [id(p) for p in twin.nested.parameters()]
    assert [vars(p) for p in twin.parameters()] == [vars(p) for p in masked.parameters()]
    assert [m.training for m in twin.modules()] == [m.training for m in masked.modules()]
    for _ in range(3):
        torch.testing.assert_close(twin(x), masked(x))
        assert twin.nested.drawn == nested.drawn
    before_step = copy.deepcopy(masked.state_dict())
    with torch.no_grad():
        next(twin.nested.parameters()).add_(1)
    twin(x).sum().backward()
    for name, tensor in masked.state_dict().items():
        assert torch.equal(tensor, before_step[name]), name
    assert all(p.grad is None for p in (*masked.parameters(), *nested.parameters()))


def test_an_average_of_masked_training() -> None:
    nested, x, _ = alike("bn")
    masked = nested.masked()
    average = torch.optim.swa_utils.AveragedModel(masked)
    with torch.no_grad():
        for parameter in nested.parameters():
            parameter.add_(1)
    average.update_parameters(masked)
    torch.testing.assert_close(average.eval()(x), masked.eval()(x))


def test_units_are_visible_after_norm_and_activation() -> None:
    nested, _, _ = classes("bn")
    nested = nestify.transform(nested.graph.capture.model, "fn3-channel", nested.example_inputs)
    after, before = nested.masked().network, nested.masked(before_norm=True).network
    for network, what in ((after, torch.ops.aten.relu.default), (before, "0")):
        (unit,) = [n for n in network.graph.nodes if n.name.startswith("odo_")]
        assert unit.args[0].target == what
    assert "self.odo" in after.code


def test_a_mask_before_the_norm_leaves_constants() -> None:
    """A removed channel comes out of the norm as relu(b - g mu / sigma): it is not removed."""
    nested, x, _y = classes("bn")
    nested = nestify.transform(nested.graph.capture.model, "fn3-channel", nested.example_inputs)
    with torch.no_grad():
        nested.get_parameter("1.bias").fill_(1.0)
    nested.eval()
    with nested.activate(nested.space.smallest()):
        sliced, after = nested(x), nested.masked()(x)
        before = nested.masked(before_norm=True)(x)
    torch.testing.assert_close(sliced, after)
    assert not torch.allclose(sliced, before, atol=1e-2)


def test_a_unit_that_a_norm_takes_statistics_over_is_refused() -> None:
    net = nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 4))
    nested = nestify.transform(net, "fn3-neuron{where=all}", (torch.randn(2, 6),))
    with pytest.raises(nestify.UsageError, match="layer_norm takes statistics"):
        nested.masked()


def test_masked_training_draws_the_same_subnets() -> None:
    nested, x, _ = alike("block")
    twin = copy.deepcopy(nested)
    masked = nested.masked()
    for net in (nested, twin):
        net.draws.restart(5)
    for _ in range(3):
        torch.testing.assert_close(masked(x), twin(x), rtol=1e-10, atol=1e-12)
        assert nested.drawn == twin.drawn


def test_one_compilation_serves_all_subnets() -> None:
    nested, x, y = classes("block")
    nested = nestify.transform(nested.graph.capture.model, HIDDEN, nested.example_inputs).train()
    twin = copy.deepcopy(nested)
    counter = CompileCounter()
    masked = nested.masked()
    torch._dynamo.reset()
    compiled = torch.compile(masked, backend=counter)
    for net in (nested, twin):
        net.draws.restart(5)
    seen = set()
    for i in range(5):
        for net, inner in ((compiled, nested), (twin, twin)):
            inner.zero_grad()
            F.cross_entropy(net(x), y).backward()
        seen.add(nested.drawn)
        for a, b in zip(nested.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)
        if i == 0:
            first = counter.frame_count
    assert len(seen) > 2
    assert counter.frame_count == first == 1


def test_a_compiled_nested_model_still_draws() -> None:
    nested, x, _y = classes("block")
    twin = copy.deepcopy(nested)
    torch._dynamo.reset()
    compiled = torch.compile(nested, backend="eager")
    for net in (nested, twin):
        net.draws.restart(5)
    for _ in range(3):
        torch.testing.assert_close(compiled(x), twin(x))
        assert nested.drawn == twin.drawn


class Stream(nn.Module):
    """A convolution within a residual stream: one unit on both of its sides."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        return self.head(x + torch.relu(self.body(x)))


class Attention(nn.Module):
    """Queries, keys and values of one weight, so of one unit a head."""

    def __init__(self) -> None:
        super().__init__()
        self.attend, self.head = nn.MultiheadAttention(16, 4, batch_first=True), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.attend(x, x, x, need_weights=False)[0])


@pytest.mark.parametrize(
    ("model", "shape"), [(Stream, (2, 3, 6, 6)), (Attention, (2, 5, 16))], ids=["conv", "attention"]
)
def test_a_unit_on_both_sides_of_a_layer_is_masked(
    model: type[nn.Module], shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape).double()
    recipe = "fn3-channel{where=all}+fn3-neuron{where=all}"
    nested = nestify.transform(model().double(), recipe, (x,)).eval()
    masked = nested.masked()
    for seed in range(6):
        with nested.activate(nested.space.sample(torch.Generator().manual_seed(seed))):
            torch.testing.assert_close(nested(x), masked(x), rtol=1e-10, atol=1e-12)


def test_scaling_reaches_a_layer_within_a_stream() -> None:
    nested = nestify.transform(
        Stream(), "fn3-channel{where=all,draw=uniform}", (torch.ones(1, 3, 6, 6),)
    )
    nested.scaling = "expected"
    assert set(nested.eval().own_tensors(nested.space.at(0.5))) == {"body.weight", "head.weight"}


class Recurrent(nn.Module):
    """What an LSTM removes would live on in its own steps."""

    def __init__(self) -> None:
        super().__init__()
        self.feed, self.steps = nn.Linear(6, 8), nn.LSTM(8, 8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.feed(x)
        return self.head(x + self.steps(x)[0])


class Codebook(nn.Module):
    """Distances count what either of two operands has."""

    def __init__(self) -> None:
        super().__init__()
        self.feed, self.codes = nn.Linear(6, 8), nn.Parameter(torch.randn(5, 8))
        self.head = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cdist(self.feed(x), self.codes))


class Gram(nn.Module):
    """A unit twice in one tensor: a layer sums it, and leaves it where it stands beside."""

    def __init__(self) -> None:
        super().__init__()
        self.feed, self.mix = nn.Linear(6, 8), nn.Linear(8, 4)
        self.head = nn.Conv1d(8, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.feed(x)
        return self.head(torch.relu(self.mix((x.mT @ x).cos())))


class Written(nn.Module):
    """What is written in place is no zero any more where its maker had a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.feed, self.mix, self.head = nn.Linear(6, 8), nn.Linear(8, 5), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.feed(x)
        mixed = self.mix(x.view(-1, 1, 8) * 1.0).sum((1, 2))
        x += 1
        x.view(-1, 2, 4)[:, 1].mul_(2)
        return self.head(x) + mixed.view(*x.shape[:2], 1)


class Generated(nn.Module):
    """Units of weights alone, and samples side by side with channels."""

    def __init__(self) -> None:
        super().__init__()
        self.z = nn.Parameter(torch.randn(4))
        self.layer, self.weights = nn.Linear(4, 16), nn.Linear(16, 48)
        self.norms = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8), dim=1)
        self.kernels, self.head = nn.Linear(8, 24), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = self.weights(torch.relu(self.layer(self.z))).view(8, 6)
        x = self.norms(F.linear(x, weights)).mT
        kernels = self.kernels(x.mean(-1)).view(-1, 1, 3)
        x = F.conv1d(
            x.reshape(1, -1, x.shape[-1]), kernels, padding=1, groups=len(kernels)
        ).view_as(x)
        return self.head(x.mT)


@pytest.mark.parametrize("model", [Recurrent, Codebook, Gram, Written, Generated])
def test_every_operand_of_a_sum_is_masked(model: type[nn.Module]) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6).double()
    nested = nestify.transform(
        model().double(), "fn3-channel{where=all}+fn3-neuron{where=all}", (x,)
    )
    masked = nested.masked()
    for seed in range(6):
        found = []
        with nested.activate(nested.space.sample(torch.Generator().manual_seed(seed))):
            for net in (nested, masked):
                nested.zero_grad()
                out = net(torch.cat([x, x.cos()]))
                out.square().sum().backward()
                found.append({"": out} | {k: g.clone() for k, g in gradients(nested).items()})
        torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


class Tied(nn.Module):
    """A head that reads the table of the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.up, self.down = nn.Embedding(9, 8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.head = nn.Linear(8, 9, bias=False)
        self.head.weight = self.table.weight

    def forward(self, i: torch.Tensor) -> torch.Tensor:
        return self.head(self.down(torch.relu(self.up(self.table(i)))))


def test_tied_weights_stay_tied() -> None:
    nested = nestify.transform(Tied(), "fn3-neuron", (torch.arange(6).view(2, 3),))
    own, network = nested.get_parameter("table.weight"), nested.masked().network
    assert all(network.get_parameter(f"{name}.weight") is own for name in ("table", "head"))


def test_forwards_may_precede_their_backward() -> None:
    model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 3)).double()
    x = torch.randn(5, 4).double()
    nested = nestify.transform(model, "fn3-neuron", (x,)).train()
    masked, weight = nested.masked(), nested.get_parameter("0.weight")
    subnets = [nested.space.at(0.25), nested.space.at(0.75)]

    def summed(net: nn.Module) -> torch.Tensor:
        outs = []
        for subnet in subnets:
            with nested.activate(subnet):
                outs.append(net(x).square().sum())
        (grad,) = torch.autograd.grad(sum(outs), weight)
        return grad

    torch.testing.assert_close(summed(masked), summed(nested))


def test_masks_run_on_what_a_subnet_has_of_its_own() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 6, 6)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 5, 3))
    nested = nestify.transform(model, "fn3-channel{draw=uniform}", (x,)).eval()
    subnet = nested.space.at(0.5)
    nested.calibrate(subnet, [2 * x])
    with nested.activate(subnet):
        torch.testing.assert_close(nested.masked()(x), nested(x))
    nested.scaling = "expected"
    with nested.activate(subnet):
        torch.testing.assert_close(nested.masked()(x), nested(x))
    nested.scaling = "none"
    for tensor in nested.switch_norms([0.5, 1.0]).parameters():
        nn.init.normal_(tensor)
    with nested.activate(subnet):
        torch.testing.assert_close(nested.masked()(x), nested(x))
