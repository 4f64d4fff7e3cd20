"""The op table: for each op, what its dims mean, which literals spell them out, what it costs.

Everything else is derived from it: dims, slicing, new literals, MACs, masks, and the law tests that
prove each rule by running the op. An op without a rule fixes the dims it touches and is listed.

Imports: errors, support, dims. Start reading: ``call``, then ``one_liners``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nestify.rules.call import (
    Call,
    Dims,
    Literal,
    bind_arguments,
    fix_numbered,
    fix_plural,
    is_mutable,
    op_name,
    shape_of,
)
from nestify.rules.diagonals import DIAGONALS
from nestify.rules.indexing import INDEXING
from nestify.rules.linalg import LINALG
from nestify.rules.losses import LOSSES
from nestify.rules.math import MATH
from nestify.rules.norms import STATISTICS
from nestify.rules.one_liners import LINES
from nestify.rules.recurrent import RECURRENT
from nestify.rules.scatter import WRITES
from nestify.rules.shapes import SHAPES
from nestify.rules.spectra import SPECTRA

__all__ = [
    "CONVOLUTIONS",
    "COPIES",
    "NONLINEAR",
    "NORMS",
    "ORDERED",
    "PAIRED",
    "POOLS",
    "QUIET",
    "RULES",
    "STRIDED",
    "UNDERIVED",
    "VIEWS",
    "Call",
    "Dims",
    "Literal",
    "bind_arguments",
    "fix_numbered",
    "fix_plural",
    "is_mutable",
    "op_name",
    "shape_of",
]

# Ops whose parameters scale and shift normalised values.
NORMS = frozenset("batch_norm instance_norm group_norm layer_norm rms_norm".split())

# Ops that slide a kernel over a map; groups, kernel and channels follow from arguments by name.
CONVOLUTIONS = frozenset(("conv1d", "conv2d", "conv3d"))

# Ops that give another view of their first operand; in-place ops do too, by their schema.
VIEWS = frozenset(
    "view _unsafe_view reshape view_as reshape_as flatten ravel unflatten permute transpose "
    "swapaxes swapdims t numpy_T mT adjoint matrix_H movedim moveaxis squeeze unsqueeze expand "
    "expand_as broadcast_to slice narrow select diagonal unbind split_with_sizes getitem detach "
    "alias unfold as_strided real imag view_as_real view_as_complex atleast_1d atleast_2d "
    "atleast_3d broadcast_tensors".split()
)

# Ops that read neighbouring values as one: those must lie in memory as torch wants them.
PAIRED = frozenset(("view_as_complex",))

# Ops that give their operand's values as they are, perhaps in other memory.
COPIES = frozenset(("alias", "clone", "contiguous", "detach", "lift_fresh_copy"))

# Ops that bend: a channel that passes one of these is hidden, not part of a linear stream.
NONLINEAR = frozenset(
    "celu elu gelu glu hardsigmoid hardswish hardtanh leaky_relu mish prelu relu relu6 rrelu selu "
    "sigmoid silu softplus tanh clamp clamp_min".split()
)

# Ops under which a channel of zeros (of its weights too) stays finite, has finite gradients, and
# tells the other channels nothing, unless the op takes statistics over the channels.
QUIET = frozenset(
    "conv1d conv2d conv3d linear batch_norm add sub mul neg celu elu gelu hardsigmoid hardswish "
    "hardtanh leaky_relu mish prelu relu relu6 selu sigmoid silu softplus tanh clamp clamp_min "
    "alias clone contiguous detach max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d "
    "avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d mean".split()
)

# Ops that read a tensor by its place in memory: for these the memory format is part of the meaning.
STRIDED = frozenset(
    "as_strided as_strided_copy set_ resize resize_as stride storage_offset".split()
)

# Ops that draw a number for every position, in the order in which those lie in memory, and those
# that refuse a map with its channels last.
ORDERED = frozenset(
    "alpha_dropout bernoulli cauchy dropout exponential geometric log_normal normal rand_like "
    "randint_like randn_like random uniform max_pool3d max_pool3d_with_indices".split()
)

# Ops without a derivative, which functions of torch call without gradients.
UNDERIVED = frozenset(("randint_like",))

# Ops that pool positions into one feature vector.
POOLS = frozenset(
    "mean adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d avg_pool2d amax".split()
)

RULES: dict[str, Callable[[Call], Any]] = {
    **LINES,
    **MATH,
    **LINALG,
    **SPECTRA,
    **STATISTICS,
    **LOSSES,
    **RECURRENT,
    **SHAPES,
    **INDEXING,
    **WRITES,
    **DIAGONALS,
}
