"""Looking into networks: which filters depend on which, which matter, what layers cost.

The analyses of Deep Roots (Ioannou et al., 2017): filter covariance (A.2, Figs. 6 and 10 to 13),
savings layer by layer (A.4, Fig. 15), and whether they pay on a target (section 5). And importance:
what each channel, neuron, head and path is worth. Plots need matplotlib:
``pip install nestify[report]``.

Imports: all rooms up to compiler. Start reading: ``importances``, ``layer_costs``.
"""

from nestify.analysis.covariance import (
    filter_correlation,
    filter_covariance,
    filter_covariances,
)
from nestify.analysis.importances import importance
from nestify.analysis.layer_costs import LayerSaving, layer_savings
from nestify.analysis.payoffs import LayerPayoff, Payoff, payoff
from nestify.analysis.plots import plot_layer_savings, plot_matrices
from nestify.support.covariance import zca

__all__ = [
    "LayerPayoff",
    "LayerSaving",
    "Payoff",
    "filter_correlation",
    "filter_covariance",
    "filter_covariances",
    "importance",
    "layer_savings",
    "payoff",
    "plot_layer_savings",
    "plot_matrices",
    "zca",
]
