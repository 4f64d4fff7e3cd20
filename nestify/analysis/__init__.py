"""Looking into networks: which filters depend on which, and what each layer costs.

The analyses of Deep Roots (Ioannou et al., 2017): filter covariance (A.2, Figs. 6 and 10 to 13) and
layer-wise savings (A.4, Fig. 15). Plots need matplotlib: ``pip install nestify[report]``.
"""

from nestify.analysis.covariance import (
    filter_correlation,
    filter_covariance,
    filter_covariances,
)
from nestify.analysis.layers import LayerSaving, layer_savings
from nestify.analysis.plots import plot_layer_savings, plot_matrices
from nestify.moments import zca

__all__ = [
    "LayerSaving",
    "filter_correlation",
    "filter_covariance",
    "filter_covariances",
    "layer_savings",
    "plot_layer_savings",
    "plot_matrices",
    "zca",
]
