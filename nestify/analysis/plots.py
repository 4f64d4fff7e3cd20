"""The plots of Deep Roots: covariance matrices (Figs. 6, 11 to 13), savings by layer (Fig. 15)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from nestify.analysis.layer_costs import LayerSaving
from nestify.errors import UsageError
from nestify.support.arguments import PATH, check

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_layer_savings", "plot_matrices"]


def plot_matrices(
    matrices: Mapping[str, Mapping[str, Tensor]],
    path: str | os.PathLike[str] | None = None,
    *,
    title: str = "",
) -> Figure:
    """Draw the magnitudes of matrices: a row a network, a column a pair of layers (or one layer).

    Figs. 6 and 12 are one pair of layers in several networks, Fig. 13 all pairs, Fig. 11 the
    correlations of single layers. Each panel has its own scale, from 0 to its largest magnitude.

    >>> import torch
    >>> figure = plot_matrices({"root-4": {"conv2c, conv3a": torch.randn(32, 32)}})
    >>> len(figure.axes)
    1

    Raises:
        UsageError: there is no matrix, ``path`` is no path, or matplotlib is not installed.
    """
    columns = list(dict.fromkeys(name for row in matrices.values() for name in row))
    if not columns:
        raise UsageError("there is no matrix to plot")
    figure, panels = _panels(len(matrices), len(columns), 2.2)
    for i, (network, row) in enumerate(matrices.items()):
        for j, name in enumerate(columns):
            panel: Any = panels[i][j]
            panel.set_xticks([])
            panel.set_yticks([])
            if name in row:
                panel.imshow(row[name].abs().cpu().numpy(), cmap="gray", aspect="auto", vmin=0)
            if i == 0:
                panel.set_title(name, fontsize=8)
            if j == 0:
                panel.set_ylabel(network, fontsize=8)
    return _finished(figure, path, title)


def plot_layer_savings(
    rows: Sequence[LayerSaving],
    path: str | os.PathLike[str] | None = None,
    *,
    title: str = "",
) -> Figure:
    """Draw MACs and parameters of each layer before and after a rewrite, one over the other.

    >>> figure = plot_layer_savings([LayerSaving("conv", 100, 25, 40, 10)])
    >>> [axes.get_ylabel() for axes in figure.axes]
    ['MACs', 'parameters']

    Raises:
        UsageError: there is no layer, ``path`` is no path, or matplotlib is not installed.
    """
    if not rows:
        raise UsageError("there is no layer to plot")
    figure, panels = _panels(2, 1, max(4.0, 0.16 * len(rows)), height=2.4)
    places = range(len(rows))
    for (panel,), what in zip(panels, ("macs", "params"), strict=True):
        before = [getattr(row, f"{what}_before") for row in rows]
        after = [getattr(row, f"{what}_after") for row in rows]
        panel.bar(places, before, color="0.8", label="original")
        panel.bar(places, after, color="tab:blue", width=0.5, label="rewritten")
        panel.set_ylabel("MACs" if what == "macs" else "parameters")
        panel.set_xticks([])
    panels[0][0].legend(fontsize=8)
    panels[1][0].set_xticks(places, [row.layer for row in rows], rotation=90, fontsize=5)
    return _finished(figure, path, title)


def _panels(rows: int, columns: int, width: float, height: float | None = None) -> tuple[Any, Any]:
    """A figure without a window, and its panels as rows of columns."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(
            "plots need matplotlib, which is not installed: pip install nestify[report]"
        ) from error
    size = (columns * width, rows * (height or width))
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _finished(figure: Any, path: str | os.PathLike[str] | None, title: str) -> Figure:
    if title:
        figure.suptitle(title, fontsize=10)
    if path is not None:
        check("the plot", {"path": path}, {"path": PATH})
        figure.savefig(path, dpi=120)
    return figure
