"""Search: which subnets to score, what they score, and what they cost."""

from nestify.explore.fidelity import fidelity
from nestify.explore.searching import METHODS, search

__all__ = ["METHODS", "fidelity", "search"]
