"""What a subnet has of its own: cached statistics, switchable norms, factors of a scaling rule."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nestify
from nestify.nested.batch_norm import reestimate_batch_norm
from nestify.training import step
from tests.nested.test_masked import HIDDEN
from tests.nested.test_training import classes


def conv_net() -> tuple[nestify.NestedModel, list[torch.Tensor]]:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12 * 9, 5),
    )
    batches = [torch.randn(16, 3, 7, 7) * 3 + 1 for _ in range(3)]
    nested = nestify.transform(net, "fn3-channel{where=all,draw=uniform}", (batches[0],))
    return nested, batches


# --- statistics -----------------------------------------------------------------------------------


def test_statistics_of_a_subnet_are_kept_and_shipped() -> None:
    nested, batches = conv_net()
    nested.eval()
    small, half = nested.space.smallest(), nested.space.at(0.5)
    before = {name: b.clone() for name, b in nested.named_buffers()}
    expected = {}
    for subnet in (small, half):
        slim = nested.extract(subnet)
        reestimate_batch_norm(slim, batches)
        expected[subnet] = slim(batches[0])
        nested.calibrate(subnet, batches)
    for subnet in (small, half):
        with nested.activate(subnet):
            torch.testing.assert_close(nested(batches[0]), expected[subnet])
        torch.testing.assert_close(nested.extract(subnet)(batches[0]), expected[subnet])
    full = nested(batches[0])
    assert all(torch.equal(b, before[name]) for name, b in nested.named_buffers())
    assert not torch.allclose(nested.extract(nested.space.largest(), batches)(batches[0]), full)


@pytest.mark.parametrize("event", ["train", "load"])
def test_statistics_are_forgotten_when_weights_change(event: str) -> None:
    nested, batches = conv_net()
    nested.eval()
    small = nested.space.smallest()
    with nested.activate(small):
        plain = nested(batches[0])
        nested.calibrate(small, batches)
        assert not torch.allclose(nested(batches[0]), plain)
        if event == "train":
            nested.train().eval()
        else:
            nested.load_state_dict(nested.state_dict())
        assert torch.equal(nested(batches[0]), plain)


@pytest.mark.parametrize("before", ["nothing", "asked", "copied"])
def test_statistics_are_of_the_weights_they_were_estimated_with(before: str) -> None:
    nested, batches = conv_net()
    small, large = nested.space.smallest(), nested.space.largest()
    nested.eval().calibrate(small, batches)
    assert copy.deepcopy(nested).is_calibrated(small)
    with torch.no_grad():  # as an average of weights is written, in eval
        next(nested.parameters()).mul_(2)
    if before == "asked":
        assert not nested.is_calibrated(small)
    elif before == "copied":
        assert not copy.deepcopy(nested).is_calibrated(small)
    nested.calibrate(large, batches)
    assert nested.is_calibrated(large)
    assert not nested.is_calibrated(small)


def test_statistics_follow_the_model_to_another_dtype() -> None:
    nested, batches = conv_net()
    small, x = nested.space.smallest(), batches[0]
    nested.eval().calibrate(small, batches)
    with torch.no_grad(), nested.activate(small):
        plain = nested(x)
        torch.testing.assert_close(nn.Sequential(nested.double())(x.double()).float(), plain)
        assert nested.is_calibrated(small)
        assert {t.dtype for t in nested.extract(small).parameters()} == {torch.float64}
        torch.testing.assert_close(nn.Sequential(nested).float()(x), plain)
        next(nested.parameters()).mul_(2)
    assert not nested.double().is_calibrated(small)


class Attention(nn.Module):
    """Heads of fused projections are no first positions of them: those are read by index."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.norm, self.out = nn.Linear(8, 24), nn.BatchNorm1d(5), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.heads(self.norm(x)).view(-1, 5, 3, 4, 2).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("name", ["convolutions", "heads"])
def test_what_inference_mode_leaves_behind_serves_calls_with_gradients(name: str) -> None:
    if name == "heads":
        batches = [torch.randn(4, 5, 8)]
        nested = nestify.transform(Attention().eval(), "fn3-head", (batches[0],))
    else:
        nested, batches = conv_net()
    small = nested.space.smallest()
    nested.eval()
    with torch.inference_mode(), nested.activate(small):
        nested.calibrate(small, batches)
        expected = nested(batches[0])
    with nested.activate(small):
        found = nested(batches[0].clone().requires_grad_())
        found.sum().backward()
    torch.testing.assert_close(found, expected)


# --- switchable norms -----------------------------------------------------------------------------


def test_norms_switch_with_the_subnet() -> None:
    nested, batches = conv_net()
    norms = nested.switch_norms([0.25, 0.5, 1.0])
    assert len(list(nested.parameters())) == 10 + 3 * 4
    optimizer = torch.optim.SGD(nested.parameters(), lr=0.1)
    nested.train()
    shared = {n: t.clone() for n, t in nested.named_tensors() if not n.startswith("switch")}
    seen = set()
    for i in range(12):
        optimizer.zero_grad()
        step(nested, batches[i % 3], torch.arange(16) % 5, F.cross_entropy)
        optimizer.step()
        seen.add(nested.drawn)
    assert seen == set(norms.subnets)
    state = nested.state_dict()
    for name in ("1.weight", "1.running_mean", "4.bias"):
        assert torch.equal(state[name], shared[name])  # no longer in use
        own = [getattr(norms.get_submodule(str(i)), name.replace(".", ":")) for i in range(3)]
        assert not any(torch.equal(t, shared[name]) for t in own)
        assert not torch.equal(own[0], own[2])
    nested.eval()
    for subnet in norms.subnets:
        slim = nested.extract(subnet)  # verified against the nested model
        index = norms.subnets.index(subnet)
        own = getattr(norms.get_submodule(str(index)), "1:running_mean")
        kept = slim.get_buffer("1.running_mean")
        assert torch.equal(kept, own[: len(kept)])


def test_a_subnet_without_norms_of_its_own_is_named() -> None:
    nested, batches = conv_net()
    nested.switch_norms([0.25, 0.5])
    said = r"norms switch among the subnets .* one that is none of them runs on the shared norms"
    with pytest.warns(nestify.NestifyWarning, match=said):
        nested.eval()(batches[0])  # the largest, which is none of them
    with pytest.warns(nestify.NestifyWarning, match=said):
        nested.extract(nested.space.at(0.75))
    with nested.activate(nested.space.at(0.5)):
        nested(batches[0])  # no warning


def counting_net() -> tuple[nestify.NestedModel, torch.Tensor]:
    torch.manual_seed(0)
    norms = [nn.BatchNorm1d(width, momentum=None) for width in (6, 4)]
    net = nn.Sequential(nn.Linear(3, 6), norms[0], nn.ReLU(), nn.Linear(6, 4), norms[1])
    x = torch.randn(9, 3)
    return nestify.transform(net, "fn3-neuron", (x,)), x


@pytest.mark.parametrize("masked", [False, True])
def test_norms_that_switch_count_batches_of_their_own(masked: bool) -> None:
    nested, x = counting_net()
    half, full = nested.switch_norms([0.5, 1.0]).subnets
    apart = nested.extract(half).train(), copy.deepcopy(nested.extract(full)).train()
    net = (nested.masked() if masked else nested).train()
    for turn in (0, 1, 0, 0):
        with nested.activate((half, full)[turn]):
            net(x * (turn + 2))
        apart[turn](x * (turn + 2))
    nested.eval()
    for subnet, expected in zip((half, full), apart, strict=True):
        found = nested.extract(subnet).state_dict()
        for name, tensor in expected.state_dict().items():
            torch.testing.assert_close(found[name], tensor)
    assert int(nested.get_buffer("1.num_batches_tracked")) == 0


def test_norms_of_other_subnets_are_not_loaded() -> None:
    nested, x = counting_net()
    nested.switch_norms([0.5, 1.0])
    nested.train()(x)
    other, same = counting_net()[0], counting_net()[0]
    other.switch_norms([0.25, 1.0])
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(nestify.UsageError, match=r"norms of the subnets \[\[3\], \[6\]\].*\[\[2\]"):
        other.load_state_dict(nested.state_dict())
    assert all(torch.equal(t, before[name]) for name, t in other.state_dict().items())
    said = r"\[\[3\], \[6\]\].*call switch_norms with these"
    for strict in (True, False):
        refused = pytest.raises(RuntimeError, match="switchable_norms")
        ends = refused if strict else contextlib.nullcontext()
        with pytest.warns(nestify.NestifyWarning, match=said), ends:
            counting_net()[0].load_state_dict(nested.state_dict(), strict=strict)
    same.switch_norms([0.5, 1.0])
    same.load_state_dict(nested.state_dict())
    assert torch.equal(same.eval()(x), nested.eval()(x))


def test_norms_need_two_subnets_and_a_norm() -> None:
    nested, _ = conv_net()
    with pytest.raises(nestify.UsageError, match="two subnets"):
        nested.switch_norms([0.5, 0.5])
    plain, _, _ = classes("encoder")
    with pytest.raises(nestify.UsageError, match="no BatchNorm"):
        plain.switch_norms([0.5, 1.0])


# --- scaling --------------------------------------------------------------------------------------


def test_scaling_multiplies_each_channel_by_how_often_it_was_kept() -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(3, 4), nn.Linear(4, 2)
    net = nn.Sequential(first, nn.ReLU(), second)
    x = torch.randn(5, 3)
    nested = nestify.transform(net, "fn3-neuron{draw=uniform}", (x,)).eval()
    hidden = F.relu(first(x))
    factors = {
        ("expected", 4): [1, 3 / 4, 2 / 4, 1 / 4],
        ("expected", 2): [1, 3 / 4, 0, 0],
        ("conditional", 4): [1, 3 / 4, 2 / 4, 1 / 4],
        ("conditional", 2): [1, 1 / 2, 0, 0],
        ("none", 2): [1, 1, 0, 0],
    }
    for (rule, size), values in factors.items():
        nested.scaling = rule
        with nested.activate(nestify.Subnet({"0": size})):
            out = nested(x)
        torch.testing.assert_close(out, second(hidden * torch.tensor(values)))
        slim = nested.extract(nestify.Subnet({"0": size}))
        torch.testing.assert_close(slim(x), out)


@pytest.mark.parametrize("rule", ["expected", "conditional"])
@pytest.mark.parametrize("name", ["block", "encoder"])
def test_scaled_subnets_are_extracted_as_they_run(name: str, rule: str) -> None:
    nested, x, _ = classes(name)
    nested = nestify.transform(nested.graph.capture.model, HIDDEN, (x,))
    nested.eval().scaling = rule
    for seed in range(3):
        subnet = nested.space.sample(torch.Generator().manual_seed(seed))
        with nested.activate(subnet):
            torch.testing.assert_close(nested.extract(subnet)(x), nested(x), rtol=1e-4, atol=1e-5)


def test_training_is_never_scaled() -> None:
    nested, batches = conv_net()
    nested.train()
    with nested.activate(nested.space.at(0.5)):
        plain = nested(batches[0])
        nested.scaling = "expected"
        assert torch.equal(nested(batches[0]), plain)


def test_first_positions_are_sizes_and_others_have_nothing_of_their_own() -> None:
    nested, batches = conv_net()
    unit = nested.eval().space.units[0].name
    half, other = {unit: 4}, {unit: torch.tensor([0, 2, 5])}
    plain = nested.extract(other)(batches[0])
    nested.calibrate(half, batches)
    for positions in ([0, 1, 2, 3], torch.arange(4)):
        found, expected = nested.extract({unit: positions}), nested.extract(half)
        assert torch.equal(found(batches[0]), expected(batches[0]))
    assert torch.equal(nested.extract(other)(batches[0]), plain)
    nested.scaling = "expected"
    nested.extract({unit: [0, 1, 2, 3]})
    with pytest.raises(nestify.UsageError, match=r"scaling='expected' .* extract by sizes"):
        nested.extract(other)
    nested.scaling = "none"
    nested.switch_norms([0.5, 1.0])
    with pytest.raises(nestify.UsageError, match=r"norms switch .* extract one of the subnets"):
        nested.extract(other)


def test_wrong_scaling() -> None:
    nested, _ = conv_net()
    with pytest.raises(nestify.UsageError, match="none, expected, conditional"):
        nested.scaling = "beta"
    assert nested.scaling == "none"


def test_frozen_norms_stay_frozen_where_they_switch() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 5, 3))
    model[1].weight.requires_grad_(False)
    nested = nestify.transform(model, "fn3-channel", (torch.randn(2, 3, 8, 8),))
    trained = {k: p.requires_grad for k, p in nested.switch_norms([0.5, 1.0]).named_parameters()}
    assert trained == {"0.1:weight": False, "0.1:bias": True, "1.1:weight": False, "1.1:bias": True}


class Tied(nn.Module):
    """One convolution under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 1)
        self.second, self.norm, self.last = self.first, nn.BatchNorm2d(3), nn.Conv2d(3, 6, 1)
        self.norm2, self.head = nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.second(self.first(x))).relu()
        return self.head(self.norm2(self.last(x)).relu())


@pytest.mark.parametrize("how", ["double", "copy"])
def test_statistics_of_a_network_with_tied_weights_follow_it(how: str) -> None:
    x = torch.randn(4, 3, 5, 5)
    nested = nestify.transform(Tied(), "fn3-channel{where=all}", (x,)).eval()
    with torch.no_grad():
        nested.get_parameter("first.weight").add_(0.1)
    subnet = nested.space.at(0.5)
    nested.calibrate(subnet, [x])
    moved = nested.double() if how == "double" else copy.deepcopy(nested)
    assert moved.is_calibrated(subnet)
