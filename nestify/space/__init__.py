"""The search space: units, their sizes, subnets, and the laws by which training draws them.

No module here knows a tensor of the model or a graph.

Imports: errors, support. Start reading: ``unit``, then ``space``.
"""

from nestify.space.space import SearchSpace
from nestify.space.subnet import Subnet
from nestify.space.unit import Unit

__all__ = ["SearchSpace", "Subnet", "Unit"]
