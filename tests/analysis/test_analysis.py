"""Filter covariance against the paper's formulas written out, layer-wise savings, plots."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nestify
from examples.models import nin, resnet50_caffe
from nestify.analysis import covariance as covariances
from nestify.support.covariance import Moments


class Pooled(nn.Module):
    """A 1 x 1 layer, a pool, a grouped layer on the smaller map, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(6, 4, 1)
        self.second = nn.Conv2d(4, 4, 1, groups=2)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(F.max_pool2d(self.first(x), 2))
        return self.head(x.mean((2, 3)))


def pooled() -> tuple[Pooled, list[torch.Tensor]]:
    torch.manual_seed(0)
    return Pooled().double(), [torch.randn(4, 6, 6, 6).double() for _ in range(3)]


def samples(net: Pooled, loader: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """X1 and X2 as the paper has them: (filters, pixels), mean-subtracted, all in memory."""
    first = net.first(torch.cat(loader))
    second = net.second(F.max_pool2d(first, 2))
    second = second.repeat_interleave(2, 2).repeat_interleave(2, 3)  # nearest neighbours
    maps = [m.detach().transpose(0, 1).flatten(1) for m in (first, second)]
    return maps[0] - maps[0].mean(1, keepdim=True), maps[1] - maps[1].mean(1, keepdim=True)


def whitened(x: torch.Tensor) -> torch.Tensor:
    """W X with W = sqrt(N - 1) P D^(-1/2) P^T, D the eigenvalues of X X^T: equations (4) to (8)."""
    values, vectors = torch.linalg.eigh(x @ x.T)
    return (x.shape[1] - 1) ** 0.5 * vectors @ torch.diag(values**-0.5) @ vectors.T @ x


def test_covariance_is_equation_2() -> None:
    net, loader = pooled()
    x1, x2 = samples(net, loader)
    found = nestify.analysis.filter_covariance(net, "first", "second", loader, whiten=False)
    torch.testing.assert_close(found, x1 @ x2.T / (x1.shape[1] - 1))


def test_whitened_covariance_is_equation_9() -> None:
    net, loader = pooled()
    x1, x2 = samples(net, loader)
    found = nestify.analysis.filter_covariance(net, "first", "second", loader, eps=0.0)
    expected = whitened(x1) @ whitened(x2).T / (x1.shape[1] - 1)
    torch.testing.assert_close(found, expected)
    assert torch.linalg.matrix_norm(found, 2) <= 1 + 1e-9  # canonical correlations


def test_chunks_and_batches_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    net, loader = pooled()
    whole = nestify.analysis.filter_covariance(net, "first", "second", [torch.cat(loader)])
    monkeypatch.setattr(covariances, "_CHUNK", 1)
    torch.testing.assert_close(
        nestify.analysis.filter_covariance(net, "first", "second", loader), whole
    )
    labelled = [(x, torch.zeros(len(x))) for x in loader]
    torch.testing.assert_close(
        nestify.analysis.filter_covariance(net, "first", "second", labelled), whole
    )


def test_no_chunk_holds_all_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    add = Moments.add

    def spy(self: Moments, rows: torch.Tensor) -> None:
        sizes.append(rows.numel())
        add(self, rows)

    monkeypatch.setattr(Moments, "add", spy)
    monkeypatch.setattr(covariances, "_CHUNK", 600)
    net, loader = pooled()
    nestify.analysis.filter_covariance(net, "first", "second", loader)
    assert max(sizes) <= 600 < sum(sizes) == 3 * 4 * 36 * 8


def test_covariance_is_exact_far_from_zero() -> None:
    """Sums of squares alone would lose all digits of a variance of 1 around a mean of 10^7."""
    torch.manual_seed(0)
    rows = torch.randn(5000, 3, dtype=torch.float64)
    moments = Moments()
    for chunk in (rows + 1e7).split(700):
        moments.add(chunk)
    torch.testing.assert_close(moments.covariance, rows.T.cov(), rtol=1e-6, atol=1e-6)


def test_dims_that_do_not_vary_are_not_blown_up() -> None:
    white = nestify.analysis.zca(torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64))
    assert white.isfinite().all()
    assert white[1, 1] < 1e3


def test_filter_groups_show_as_blocks() -> None:
    """The block-diagonal of Fig. 6: of independent maps, a filter knows those of its own group."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Identity(), nn.Conv2d(8, 8, 1, groups=4))
    found = nestify.analysis.filter_covariance(net, "0", "1", [torch.randn(64, 8, 16, 16)]).abs()
    blocks = torch.block_diag(*[torch.ones(2, 2)] * 4).bool()
    assert found[blocks].mean() > 20 * found[~blocks].mean()


def test_maps_and_features_may_be_compared() -> None:
    net, loader = pooled()
    assert nestify.analysis.filter_covariance(net, "second", "head", loader).shape == (4, 3)
    assert nestify.analysis.filter_covariance(net, "head", "head", loader).shape == (3, 3)


def test_all_pairs_in_one_pass_over_the_loader() -> None:
    net, loader = pooled()
    found = nestify.analysis.filter_covariances(net, ["first", "second", "head"], iter(loader))
    assert [tuple(m.shape) for m in found] == [(4, 4), (4, 3)]
    torch.testing.assert_close(
        found[0], nestify.analysis.filter_covariance(net, "first", "second", loader)
    )


def test_correlation_of_a_layer_is_numpy_s() -> None:
    net, loader = pooled()
    torch.testing.assert_close(
        nestify.analysis.filter_correlation(net, "first", loader),
        samples(net, loader)[0].corrcoef(),
    )


def test_a_nested_model_is_looked_at_as_its_active_subnet() -> None:
    net, x = nin.NiN(width=1 / 6), nin.example_inputs()
    nested = nestify.transform(net, "root-4+fn3-channel", x).eval()
    nested.activate(nested.space.at(0.5))
    slim = nested.extract(nested.space.at(0.5))
    pair = ("conv2a.conv", "conv2b.conv")
    found = nestify.analysis.filter_covariance(nested, *pair, [x[0]])
    torch.testing.assert_close(found, nestify.analysis.filter_covariance(slim, *pair, [x[0]]))


def test_the_model_is_left_as_it_was() -> None:
    net, loader = pooled()
    net.train()
    nestify.analysis.filter_covariance(net, "first", "second", loader)
    assert net.training
    assert not net.first._forward_hooks


@pytest.mark.parametrize(
    ("layers", "loader", "words"),
    [
        (("frist", "second"), [torch.zeros(2, 6, 6, 6)], "no layer 'frist'; did you mean first"),
        (("", "second"), [torch.zeros(2, 6, 6, 6)], "no layer ''; layers: first"),
        (("first", "second"), [], "two samples or more; got 0"),
        (("first",), [torch.zeros(2, 6, 6, 6)], "between two layers"),
    ],
)
def test_wrong_layers_and_loaders(
    layers: tuple[str, ...], loader: list[torch.Tensor], words: str
) -> None:
    with pytest.raises(nestify.UsageError, match=words):
        nestify.analysis.filter_covariances(Pooled(), layers, loader)


def test_layers_that_give_no_single_map() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.twice, self.never = nn.Linear(4, 4), nn.Linear(4, 4)
            self.pair = Pair()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.pair(self.twice(self.twice(x)))[0]

    class Pair(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x, x

    x = [torch.randn(3, 4)]
    for layers, words in {
        ("twice", "pair"): "runs more than once",
        ("pair", "pair"): "gives no feature map",
        ("never", "never"): "does not run",
    }.items():
        with pytest.raises(nestify.UsageError, match=words):
            nestify.analysis.filter_covariance(Odd(), *layers, x)


# --- layer-wise savings ---------------------------------------------------------------------------


def test_fig_15_resnet_50_against_root_64() -> None:
    """54 layers, the totals of Table 4; only spatial layers change, each by its groups."""
    with torch.device("meta"):
        model, x = resnet50_caffe.ResNet50(), torch.empty(1, 3, 224, 224)
    rows = nestify.analysis.layer_savings(nestify.transform(model, "root-64", (x,)), "caffe")
    assert len(rows) == 54
    assert [sum(column) for column in list(zip(*rows, strict=True))[1:]] == [
        3_857_974_312,
        2_114_860_072,
        25_503_976,
        15_312_808,
    ]
    changed = {row.layer: row.params_before / row.params_after for row in rows if row[1] != row[2]}
    groups = {"res2": 64, "res3": 32, "res4": 16, "res5": 8}
    assert changed == {name: groups[name[:4]] for name in changed}
    assert len(changed) == 16


def test_savings_need_a_rewrite() -> None:
    net = nestify.transform(Pooled(), "fn3-channel{where=all}", (torch.randn(1, 6, 6, 6),))
    with pytest.raises(nestify.UsageError, match="rewrites nothing"):
        nestify.analysis.layer_savings(net)
    rooted = nestify.transform(nin.NiN(width=1 / 6), "root-2", nin.example_inputs())
    with pytest.raises(nestify.UsageError, match="torch, caffe"):
        nestify.analysis.layer_savings(rooted, "theano")


# --- plots ----------------------------------------------------------------------------------------


def test_plots_are_drawn_and_written(tmp_path: Path) -> None:
    matrix = torch.randn(6, 8)
    grid = {"original": {"a, b": matrix}, "root-4": {"a, b": matrix, "b, c": matrix}}
    figure = nestify.analysis.plot_matrices(grid, tmp_path / "grid.png", title="covariance")
    assert [len(axes.images) for axes in figure.axes] == [1, 0, 1, 1]
    rows = [nestify.analysis.LayerSaving(f"conv{i}", 10, 5, 4, 2) for i in range(3)]
    figure = nestify.analysis.plot_layer_savings(rows, tmp_path / "savings.png")
    assert [bar.get_height() for bar in figure.axes[0].patches] == [10] * 3 + [5] * 3
    assert all((tmp_path / f"{name}.png").stat().st_size > 1000 for name in ("grid", "savings"))
    with pytest.raises(nestify.UsageError, match="path of the plot must be a path"):
        nestify.analysis.plot_matrices(grid, "a\0b.png")


def test_nothing_to_plot_is_an_error() -> None:
    with pytest.raises(nestify.UsageError, match="no matrix"):
        nestify.analysis.plot_matrices({})
    with pytest.raises(nestify.UsageError, match="no layer"):
        nestify.analysis.plot_layer_savings([])


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(nestify.UsageError, match=r"nestify\[report\]"):
        nestify.analysis.plot_matrices({"a": {"b": torch.ones(2, 2)}})
