"""``rank``: the function stays, the best positions come first, and importance is what it says."""

from __future__ import annotations

import copy
import math
import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils import _pytree as pytree

import nestify
from nestify.analysis import importance, payoff
from nestify.compare import relative_error
from nestify.dims import dims_of
from nestify.explore.evaluators import Evaluator
from nestify.explore.shipping import pack
from nestify.fuzz.oracle import flat_inputs, silenced
from nestify.groups import Graph
from nestify.passes import parse_recipe
from nestify.passes.elimination import Rows, eliminate
from nestify.passes.gates import Gates
from nestify.passes.importance import measure
from nestify.passes.reading import along, readings, weights_read
from nestify.passes.walking import flat_batches
from nestify.rewriting import Rewriter, permuted
from nestify.slicing import Keep
from tests.cli.conftest import nestify as run
from tests.laws.equalities import EVERYTHING
from tests.laws.generator import ModelSpec, build, example_inputs, random_spec, specs
from tests.laws.test_models import doubled
from tests.patterns.test_patterns import PATTERNS
from tests.test_passes import MODELS
from tests.test_payoff import MODEL as FILE

Golden = Callable[[str, str], None]
WAYS = ("magnitude", "activation", "taylor", "hessian")
HIDDEN = 6


class Net(nn.Module):
    """A convolution, a norm and an activation in front of a convolution, pooled into classes."""

    def __init__(self, outputs: int = 4) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, HIDDEN, 3), nn.BatchNorm2d(HIDDEN)
        self.second, self.head = nn.Conv2d(HIDDEN, 8, 3), nn.Linear(8, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.gelu(self.second(F.relu(self.norm(self.first(x)))))
        return self.head(x.mean((2, 3)))


def net(outputs: int = 4, seed: int = 0) -> Net:
    torch.manual_seed(seed)
    model = Net(outputs).double().eval()
    with torch.no_grad():
        for name in ("norm.weight", "norm.running_var"):
            model.state_dict()[name].uniform_(0.5, 1.5)
    return model


def images(count: int = 2, seed: int = 1) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(5, 3, 7, 7, generator=draw).double() for _ in range(count)]


def labelled(count: int = 2) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(x, torch.arange(5) % 4) for x in images(count)]


def made(spec: ModelSpec, seed: int) -> tuple[nn.Module, list[Any]]:
    batches = [doubled(example_inputs(spec, n, seed + n)) for n in (2, 3)]
    return build(spec, seed).double().eval(), batches


def trace(model: nn.Module, example: tuple[Any, ...]) -> Graph:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nestify.NestifyWarning)
        return nestify.trace(model, example)


def graph_of(model: nn.Module) -> Graph:
    return nestify.trace(model, (images(1)[0],))


# --- the function stays ---------------------------------------------------------------------------


def check_function(model: nn.Module, batches: list[Any], limit: float = 1e-10) -> None:
    before = copy.deepcopy(model.state_dict())
    graph = trace(model, batches[0])
    if not graph.groups:
        return
    for by in WAYS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", nestify.NestifyWarning)
            data = [(batch,) for batch in (batches if graph.batch is not None else batches[:1])]
            moved = nestify.transform(model, f"rank{{by={by}}}", batches[0], calibration=data)
        for (batch,) in data:
            assert relative_error(model(*batch), moved.eval()(*batch)) < limit
        assert moved.graph.original is None
        assert [group.name for group in moved.graph.groups] == [g.name for g in graph.groups]
    after = model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.parametrize("name", PATTERNS)
def test_patterns_compute_the_same(name: str) -> None:
    pattern = PATTERNS[name]
    if pattern.dtype is torch.float64:
        check_function(pattern.build(), [pattern.example(2), pattern.example(3)])


@pytest.mark.parametrize("seed", range(20))
def test_generated_models_compute_the_same(seed: int) -> None:
    check_function(*made(random_spec(seed), seed), limit=1e-9)


@pytest.mark.campaign
@given(spec=specs())
def test_many_generated_models_compute_the_same(spec: ModelSpec) -> None:
    check_function(*made(spec, 0), limit=1e-9)


# --- the best come first --------------------------------------------------------------------------


@pytest.mark.parametrize("by", WAYS)
@pytest.mark.parametrize("seed", range(12))
def test_importance_moves_with_the_positions_and_then_descends(seed: int, by: str) -> None:
    model, batches = made(random_spec(seed), seed)
    graph, data = trace(model, batches[0]), [(batches[0],)]
    scores = measure(graph, by, data).scores
    edit = Rewriter(graph)
    orders = {group.dim: scores[group.name].order for group in graph.groups}
    for name, tensor in permuted(graph, orders).items():
        edit.replace_tensor(name, tensor)
    moved = importance(edit.finish(()), by, calibration=data)
    for name, (values, order) in scores.items():
        assert sorted(order.tolist()) == list(range(len(values)))
        assert bool((values[order].diff() <= 0).all())
        scale = max(float(values.max()), 1e-200)
        assert torch.allclose(moved[name] / scale, values[order] / scale, atol=1e-7), name


@pytest.mark.parametrize("by", WAYS)
@pytest.mark.parametrize("seed", [1, 4, 9, 20, 22])
def test_a_prefix_is_the_original_without_its_least_important_positions(seed: int, by: str) -> None:
    model, batches = made(random_spec(seed), seed)
    graph, data = trace(model, batches[0]), [(batches[0],)]
    spanned = {
        dim for call in graph.calls.values() for expr in call.normalised for dim in dims_of(expr)
    }
    halves = {g.name: -(-g.size // 2) for g in graph.groups if g.dim not in spanned}
    scores = measure(graph, by, data).scores
    picks = {
        group.dim: scores[group.name].order[: halves[group.name]].sort().values
        for group in graph.groups
        if group.name in halves
    }
    assert picks, "a law about nothing proves nothing"
    expected = silenced(graph, graph.capture.tensors, Keep({}, picks), flat_inputs(batches[0]))
    recipe = f"rank{{by={by}}}+{EVERYTHING}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nestify.NestifyWarning)
        nested = nestify.transform(model, recipe, batches[0], calibration=data)
    slim = nested.extract(halves, verify=False)
    found = pytree.tree_leaves(slim(*batches[0]))
    assert relative_error(expected, found) < 1e-9


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


# --- elimination ----------------------------------------------------------------------------------


@given(st.integers(1, 9), st.integers(1, 12), st.integers(0, 10**6))
def test_elimination_takes_the_cheapest_next_every_time(samples: int, size: int, seed: int) -> None:
    rows = torch.randn(samples, size, generator=torch.Generator().manual_seed(seed)).double()
    costs, order = eliminate(rows)
    gone: list[int] = []
    highest = 0.0

    def energy(positions: list[int]) -> float:
        return float(rows[:, positions].sum(1).square().sum())

    for position in reversed(order.tolist()):
        there = [p for p in range(size) if p not in gone]
        steps = {p: energy([*gone, p]) - energy(gone) for p in there}
        assert steps[position] <= min(steps.values()) + 1e-9
        highest = max(highest, steps[position] / 2)
        assert math.isclose(float(costs[position]), highest, abs_tol=1e-9)
        gone.append(position)


def test_many_positions_leave_in_rounds_and_none_twice() -> None:
    rows = torch.randn(4, 3000, generator=torch.Generator().manual_seed(0)).double()
    costs, order = eliminate(rows)
    assert sorted(order.tolist()) == list(range(3000))
    assert bool((costs[order].diff() <= 0).all())


def test_rows_beyond_the_limit_are_kept_on_average() -> None:
    draw = torch.Generator().manual_seed(0)
    data = (
        torch.randn(4000, 5, generator=draw).double() @ torch.randn(5, 5, generator=draw).double()
    )
    few, all_of_them = Rows(limit=500), Rows(limit=4000)
    for chunk in data.split(170):
        few.add(chunk)
        all_of_them.add(chunk)
    exact = data.T @ data / 4000
    torch.testing.assert_close(all_of_them.rows.T @ all_of_them.rows, exact)
    error = (few.rows.T @ few.rows - exact).norm() / exact.norm()
    assert few.rows.shape == (500, 5)
    assert error < 0.15


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


# --- in recipes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_orders_of_small_networks(model: str, golden: Golden) -> None:
    cls, shape = MODELS[model]
    original = cls().double().eval()
    with torch.no_grad():
        for i, tensor in enumerate(original.state_dict().values()):
            if tensor.is_floating_point():
                wave = torch.cos(torch.arange(tensor.numel()) * 1.7 + i).double()
                tensor.copy_((0.6 + 0.4 * wave if tensor.ndim < 2 else wave).view(tensor.shape))
    x = torch.sin(torch.arange(3 * math.prod(shape)) * 0.7).double().view(3, *shape[1:])
    lines: list[str] = []
    for by in WAYS:
        nested = nestify.transform(original, f"rank{{by={by}}}", (x,), calibration=[x])
        lines += [nested.graph.changes[0].what, ""]
        for name, values in importance(nested, by, calibration=[x]).items():
            lines.append(f"{name}: {' '.join(f'{value:.3g}' for value in values.tolist())}")
        lines.append("")
    golden(f"rank/{model}.txt", "\n".join(lines))


def test_the_default_is_hessian_with_data_and_magnitude_without() -> None:
    x = images(1)[0]
    said = [
        nestify.transform(net(), "rank", (x,), calibration=data).graph.changes[0].what
        for data in (None, labelled(1))
    ]
    assert said == [
        "2 groups in the order of importance by magnitude",
        "2 groups in the order of importance by hessian on 1 batch, loss: cross-entropy",
    ]


def test_it_is_no_rewrite_that_could_pay() -> None:
    x = images(1)[0]
    ranked = nestify.transform(net(), "rank+fn3-channel", (x,))
    assert ranked.graph.original is None
    with pytest.raises(nestify.UsageError, match="rewrites nothing"):
        payoff(ranked)
    convs = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 1)).double()
    both = nestify.transform(convs, "rank+root-4", (x,))
    assert [change.recipe for change in both.graph.changes] == ["rank", "root-4"]
    assert payoff(both, layers=False).recipe == "root-4"


def test_plan_ranks_by_the_calibration_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(FILE)
    recipe = ("--recipe", "rank{by=taylor}+fn3-channel{where=all}")
    done = run(tmp_path, "plan", "model.py", *recipe, "--evaluations", "4", "--out", "plan")
    assert done.code == 0, done.stderr
    assert "saves" not in done.stdout
    same = run(tmp_path, "verify", "model.py", *recipe, "--subnets", "1")
    assert same.code == 0, same.stderr


def test_two_passes_read_a_generator_of_batches() -> None:
    torch.manual_seed(0)
    convs = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 1)).double()
    batches = images()
    nested = nestify.transform(
        convs, "rank{by=activation}+root-4{init=project}", (batches[0],), calibration=iter(batches)
    )
    assert nested.get_submodule("1").groups == 4


class Pair(nn.Module):
    """Two inputs, as a batch (inputs, labels) has two parts."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(4, 6), nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.head((self.left(x) + self.right(y)).relu())


def test_workers_get_the_order_that_was_found_here() -> None:
    torch.manual_seed(0)
    inputs = (torch.randn(5, 4), torch.randn(5, 3))
    nested = nestify.transform(
        Pair(), "rank{by=hessian}+fn3-neuron", inputs, calibration=[(inputs, torch.arange(5) % 2)]
    )
    there: Any = pickle.loads(pack(Evaluator(nested, parameters_of)))
    assert relative_error(nested.eval()(*inputs), there.nested.eval()(*inputs)) == 0


def parameters_of(model: nn.Module) -> float:
    return float(sum(p.numel() for p in model.parameters()))


# --- wrong use ------------------------------------------------------------------------------------


class Sure(nn.Module):
    """Gives classes in place of scores, through one hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.hidden(x).relu()).argmax(-1)


class Two(Sure):
    """Gives two tensors."""

    def forward(self, x: torch.Tensor) -> Any:
        found = self.head(self.hidden(x).relu())
        return found, found.sum(-1)


def first_output(outputs: Any, labels: Any) -> Any:
    return outputs[0]


def half(outputs: Any, labels: Any) -> Any:
    return 0.5


X = torch.randn(5, 4)
Y = torch.arange(5) % 3


@pytest.mark.parametrize(
    ("cls", "recipe", "data", "loss", "words"),
    [
        (Two, "rank{by=size}", None, None, "by must be one of auto, magnitude, .* got 'size'"),
        (Two, "rank{by=taylor}", None, None, "rank by taylor needs data: pass calibration=batches"),
        (Two, "rank", [], None, "holds no batch"),
        (Two, "rank", [((X, X), Y)], None, "structure of the example inputs"),
        (Two, "rank", [(X, Y)], None, "gives 2 tensors, none of which is called logits"),
        (Sure, "rank", [X], None, "the outputs gave nothing that has a gradient; pass loss="),
        (Sure, "rank", [(X, [1, 2])], None, "labels are a list: what is the loss"),
        (Sure, "rank", [(X, Y[:2])], None, r"labels of shape \(2,\) and torch.int64 fit neither"),
        (Two, "rank", [(X, Y)], first_output, r"gave a tensor of shape \(5, 3\)"),
        (Two, "rank", [(X, Y)], half, "gave a float"),
        (Two, "fn3-neuron", [(X, Y)], F.cross_entropy, "loss= is for passes that measure by it"),
        (Two, "fn3-neuron+rank", None, None, "units were chosen before a rewrite"),
        (nn.ReLU, "rank", None, None, "rank finds no elastic dim"),
    ],
)
def test_wrong_use_is_refused(cls: Any, recipe: str, data: Any, loss: Any, words: str) -> None:
    with pytest.raises(nestify.UsageError, match=words):
        nestify.transform(cls(), recipe, (X,), calibration=data, loss=loss)


def test_a_loss_that_fails_shows_its_line() -> None:
    def broken(outputs: Any, labels: Any) -> Any:
        raise KeyError("no such label")

    with pytest.raises(nestify.CaptureError, match=r"loss\(outputs, labels\) failed: KeyError"):
        nestify.transform(Two(), "rank", (X,), calibration=[(X, Y)], loss=broken)


def test_weights_that_are_no_numbers_are_named() -> None:
    model = net()
    with torch.no_grad():
        model.second.weight[0, 4] = torch.nan
    with pytest.raises(nestify.UsageError, match="by magnitude is nan in group 'first'"):
        importance(graph_of(model), "magnitude")


def test_a_model_without_weights_yet_is_refused() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
        graph = nestify.trace(model, (torch.randn(2, 4),))
    with pytest.raises(nestify.UsageError, match="meta device"):
        importance(graph)
    wrong: Any = model
    with pytest.raises(nestify.UsageError, match="not a Sequential"):
        importance(wrong)


def test_options_are_read_from_text() -> None:
    (step,) = parse_recipe("rank{by=activation}")
    assert repr(step) == "Rank(by='activation')"


GUIDE = Path(__file__).parents[1] / "docs" / "pruning.md"


@pytest.mark.parametrize("snippet", re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.S))
def test_snippets_of_the_guide_run(snippet: str) -> None:
    exec(compile(snippet, GUIDE, "exec"), {})
