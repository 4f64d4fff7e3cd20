"""Search: which subnets to score, what they score, and what they cost."""

from nestify.explore.fidelity import fidelity
from nestify.explore.methods import METHODS
from nestify.explore.searching import MAX_EVALUATIONS, search

__all__ = ["MAX_EVALUATIONS", "METHODS", "fidelity", "search"]
