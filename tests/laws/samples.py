"""A sample of every op in the table, and of every mode in which it behaves in another way.

``SAMPLES`` maps a name, ``op`` or ``op:mode``, to a sample; its graph must hold a call of that op.
"""

from __future__ import annotations

from tests.laws.samples_linalg import LINALG
from tests.laws.samples_math import MATH
from tests.laws.samples_shapes import SHAPES
from tests.laws.samples_writes import WRITES

_HOMES = (MATH, LINALG, SHAPES, WRITES)
SAMPLES = {name: sample for home in _HOMES for name, sample in home.items()}

assert len(SAMPLES) == sum(map(len, _HOMES)), "a sample has two homes"
