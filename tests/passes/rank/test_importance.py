"""Importance is what each way says it is, by the loss that the labels choose."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils import _pytree as pytree

import nestify
from nestify.analysis import importance
from nestify.capture.batches import flat_batches
from nestify.dims import dims_of
from nestify.graph.contractions import along, readings, weights_read
from nestify.graph.graph import Graph
from nestify.passes.ranking.importance import measure
from nestify.passes.ranking.presence_gradients import Gates
from tests.laws.generator import random_spec
from tests.passes.rank.nets import HIDDEN, WAYS, Net, graph_of, images, labelled, made, net, trace

# --- importance is what it says -------------------------------------------------------------------


@settings(max_examples=25)
@given(st.integers(0, 400))
def test_gates_give_the_sum_of_g_times_w_over_what_reads_a_position(seed: int) -> None:
    model, batches = made(random_spec(seed), seed)
    graph = trace(model, batches[0])
    nested = nestify.NestedModel(graph, (), "as it is").eval()
    outputs = pytree.tree_leaves(nested(*batches[0]))
    found = [x for x in outputs if x.requires_grad]
    if not graph.groups or not found:
        return
    torch.stack([x.real.square().sum() for x in found]).sum().backward()
    tensors, read = dict(nested.named_tensors()), weights_read(graph)
    expected: dict[Any, torch.Tensor] = {}
    for name, position, dim in read:
        weight = tensors[name]
        if weight.grad is not None:
            sums = (weight.grad * weight.detach()).movedim(position, 0).flatten(1).sum(1)
            for owner, part in along(sums, graph.tensor_dims[name][position], lambda e: e.size):
                if owner is dim:
                    expected[dim] = expected.get(dim, 0) + part

    def objective(values: Any) -> torch.Tensor:
        leaves = [x for x in pytree.tree_leaves(values) if x.requires_grad]
        return torch.stack([x.real.square().sum() for x in leaves]).sum()

    (flat,) = flat_batches(graph.capture, [(batches[0],)])
    gates = Gates(graph).derivatives(flat, objective)
    by_weights_only = {
        dim
        for reading in readings(graph)
        for dim in reading.dims
        if all(_reads_a_weight(graph, r) for r in readings(graph) if dim in r.dims)
    }
    scale = max(float(p.grad.abs().max()) for p in nested.parameters() if p.grad is not None)
    for dim in by_weights_only & expected.keys() & gates.keys():
        assert torch.allclose(gates[dim].sum(0), expected[dim], rtol=1e-8, atol=1e-9 * scale)


def _reads_a_weight(graph: Graph, reading: Any) -> bool:
    """A weight with one reader: the gradient of a tied one has other parts, too."""
    return reading.source.op != "get_attr" and any(
        source.op == "get_attr"
        and len(source.users) == 1
        and reading.dims <= set(dims_of(graph.dims[source][position]))
        for source, position in graph.calls[reading.call].contracted
    )


def test_taylor_is_the_mean_over_samples_of_the_change_to_first_order() -> None:
    model, data = net(), labelled()
    expected = torch.zeros(HIDDEN).double()
    for x, y in data:
        for image, label in zip(x, y, strict=True):
            loss = F.cross_entropy(model(image[None]), label[None])
            (gradient,) = torch.autograd.grad(loss, model.second.weight)
            expected += (gradient * model.second.weight).sum((0, 2, 3)).abs().detach() / 10
    found = importance(graph_of(model), "taylor", calibration=data)
    torch.testing.assert_close(found["first"], expected)


def test_hessian_is_the_squared_change_of_the_outputs_where_they_are_linear() -> None:
    """With one output a sign is a sign, so that nothing is left to chance."""
    model, data = net(outputs=1), images()
    values, order = measure(graph_of(model), "hessian", data).scores["second"]
    features = torch.cat([_pooled(model, x) for x in data])
    share = features * model.head.weight.detach()[0]
    worst = share[:, order[-1]].square().mean() / 2
    torch.testing.assert_close(values[order[-1]], worst)
    total = [share[:, order[k:]].sum(1).square().mean() / 2 for k in range(9)]
    steps = torch.stack(total).diff().neg()  # what each removal adds, the last one first
    torch.testing.assert_close(values[order], steps.flip(0).cummax(0).values.flip(0))
    first = torch.stack([share[:, p].square().mean() / 2 for p in range(8)])
    assert int(first.argmin()) == int(order[-1])


def _pooled(model: Net, x: torch.Tensor) -> torch.Tensor:
    hidden = F.relu(model.norm(model.first(x)))
    return F.gelu(model.second(hidden)).mean((2, 3)).detach()


def test_of_two_weak_neurons_that_do_the_same_only_one_goes_early() -> None:
    first, last = nn.Linear(4, 5, bias=False), nn.Linear(5, 1, bias=False)
    x = torch.eye(4).double()
    with torch.no_grad():
        first.weight.copy_(x.float()[[0, 0, 1, 2, 3]])
        last.weight.copy_(torch.tensor([[0.9, 0.9, 1.0, 1.1, 1.2]]))
    graph = nestify.trace(nn.Sequential(first, last).double(), (x,))
    assert measure(graph, "taylor", [x]).scores["0"].order.tolist() == [4, 3, 2, 0, 1]
    assert measure(graph, "hessian", [x]).scores["0"].order.tolist() == [0, 4, 3, 2, 1]


def test_activation_is_the_energy_that_a_position_adds_where_it_is_read() -> None:
    model, data = net(), images()
    seen = torch.cat([F.relu(model.norm(model.first(x))) for x in data]).detach()
    energy = seen.square().sum((0, 2, 3)) * model.second.weight.detach().square().sum((0, 2, 3))
    found = importance(graph_of(model), "activation", calibration=data)
    torch.testing.assert_close(found["first"], energy / energy.mean())


def test_magnitude_is_blind_to_what_only_moves_scale_between_layers() -> None:
    torch.manual_seed(0)
    first, last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)
    model = nn.Sequential(first, nn.ReLU(), last).double()
    before = importance(graph_of(model), "magnitude")["0"]
    factors = torch.logspace(-3, 3, 8).double()
    with torch.no_grad():
        first.weight *= factors[:, None, None, None]
        last.weight /= factors[:, None, None]
    # Relative sizes of either side changed; their products, position by position, did not.
    after = importance(graph_of(model), "magnitude")["0"]
    torch.testing.assert_close(after, before)


def test_what_nothing_reads_is_worth_nothing() -> None:
    model = net()
    with torch.no_grad():
        model.second.weight[:, 2] = 0
    for by in WAYS:
        found = measure(graph_of(model), by, labelled()).scores["first"]
        assert float(found.values[2]) == 0
        assert int(found.order[-1]) == 2


def test_importance_of_a_nested_model_is_that_of_its_weights_now() -> None:
    nested = nestify.transform(net(), "fn3-channel", (images(1)[0],))
    before = importance(nested, "magnitude")["first"]
    with torch.no_grad():
        nested.get_parameter("second.weight")[:, 3] = 0
    after = importance(nested, "magnitude")["first"]
    assert float(before[3]) > 0 == float(after[3])


# --- losses ---------------------------------------------------------------------------------------


def test_losses_are_chosen_by_the_labels() -> None:
    graph, x = graph_of(net()), images(1)[0]
    cases: list[tuple[Any, str]] = [
        (x, "distance to its own outputs"),
        ((x, torch.arange(5) % 4), "cross-entropy"),
        ((x, torch.zeros(5, 4)), "squared error"),
    ]
    found = [measure(graph, "taylor", [batch]) for batch, _ in cases]
    assert [f.how for f in found] == [f"taylor on 1 batch, loss: {name}" for _, name in cases]
    values = [f.scores["first"].values for f in found]
    assert not any(torch.allclose(values[i], values[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_the_loss_of_the_user_is_what_is_differentiated() -> None:
    graph, data = graph_of(net()), labelled()

    def summed(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(outputs, labels, reduction="sum")

    plain = measure(graph, "taylor", data).scores["first"].values
    mine = measure(graph, "taylor", data, summed)
    torch.testing.assert_close(mine.scores["first"].values, plain)
    assert mine.how == "taylor on 2 batches, loss: summed"
    nested = nestify.transform(net(), "rank", (images(1)[0],), calibration=data, loss=summed)
    assert nested.graph.changes[0].what.endswith("hessian on 2 batches, loss: summed")


def test_class_labels_of_every_place_of_a_sequence_or_map() -> None:
    for model, x in (
        (nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(2, 5, 4)),
        (nn.Sequential(nn.Conv1d(4, 6, 1), nn.ReLU(), nn.Conv1d(6, 3, 1)), torch.randn(2, 4, 5)),
    ):
        found = measure(nestify.trace(model, (x,)), "taylor", [(x, torch.ones(2, 5).long())])
        assert found.how.endswith("cross-entropy")
        assert float(found.scores["0"].values.max()) > 0


# --- calls that work in place ---------------------------------------------------------------------


class InPlace(nn.Module):
    """Overwrites what was read before, by ``way``; ``copies`` does the same out of place."""

    def __init__(self, way: str, *, copies: bool) -> None:
        super().__init__()
        self.way, self.copies = way, copies
        self.first, self.second = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1)
        self.head, self.act = nn.Linear(6, 4), nn.ReLU(inplace=not copies)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        y = self.second(x)
        if self.copies:
            x = x.clone()
        if self.way == "activation":
            x = self.act(x)
        elif self.way == "functional":
            x = F.relu(x) if self.copies else F.relu_(x.flatten(2)).view_as(x)
        elif self.way == "sum":
            x += y
        elif self.way == "write":
            x[:, :, :2] = 0
        else:
            y = y.exp()
            x = x * y
            y = y * 0.1 if self.copies else y.mul_(0.1)
        return self.head((x + y).mean((2, 3)))


@pytest.mark.parametrize("way", ["activation", "functional", "sum", "write", "saved result"])
@pytest.mark.parametrize("by", ["taylor", "hessian"])
def test_what_a_later_call_overwrites_counts_as_it_was_read(way: str, by: str) -> None:
    found: list[dict[str, torch.Tensor]] = []
    for copies in (False, True):
        torch.manual_seed(0)
        model = InPlace(way, copies=copies).double().eval()
        found.append(importance(graph_of(model), by, calibration=labelled()))
    assert found[0].keys() == found[1].keys()
    for name, values in found[0].items():
        assert float(values.max()) > 0
        torch.testing.assert_close(values, found[1][name])


def test_what_torch_cannot_differentiate_is_named() -> None:
    class Piece(InPlace):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.second(self.act(self.first(x)))
            y.split(1, 2)[0].mul_(2)
            return self.head(y.mean((2, 3)))

    model = Piece("activation", copies=False).double().eval().requires_grad_(False)
    with pytest.raises(nestify.UsageError, match=r"call mul at .*test_importance.py:.*is a view"):
        importance(graph_of(model), "taylor", calibration=labelled())
