"""A sample of every op in the table, and of every mode in which it behaves in another way.

``SAMPLES`` maps a name, ``op`` or ``op:mode``, to a sample; its graph must hold a call of that op.
"""

from __future__ import annotations

from tests.laws.samples_math import MATH
from tests.laws.samples_shapes import SHAPES

SAMPLES = {**MATH, **SHAPES}

assert len(SAMPLES) == len(MATH) + len(SHAPES), "a sample has two homes"
