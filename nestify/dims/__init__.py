"""The dim algebra: what every dim of every tensor means, as an expression over elastic dims.

An expression is a :class:`Dim` (one elastic dim), a :class:`Const` (never changes), a
:class:`Product` (row-major flattening, ``heads * head_dim``) or a :class:`Concat` (side by side,
the channels of a ``torch.cat``). Three operations work by refinement: a Dim may be replaced,
everywhere at once, by an expression over smaller Dims. Replacement is union-find with path
compression, and chains of refinements are followed in loops, so a whole graph costs near-linear
time. What recursion remains goes from a product into its factors, each at most half its size.

* :func:`unify` makes two expressions the same dim,
* :func:`split` cuts one into its first ``k`` positions and the rest,
* :func:`factor` reads one as ``left * right``.

Where an operation has no solution the Dims involved become constants that carry a :class:`Reason`.
That is the safety property: a dim is elastic only if its meaning was understood at every op it
reaches.

Imports: errors, support. Start reading: ``expressions``, then ``refinement``.
"""

from nestify.dims.expressions import (
    Concat,
    Const,
    Dim,
    Expr,
    Product,
    all_dims,
    concat,
    dims_of,
    fix,
    leaves_of,
    new_dim,
    product,
    resolve,
    show,
    tag,
)
from nestify.dims.reasons import Kind, Reason
from nestify.dims.refinement import factor, split, unify

__all__ = [
    "Concat",
    "Const",
    "Dim",
    "Expr",
    "Kind",
    "Product",
    "Reason",
    "all_dims",
    "concat",
    "dims_of",
    "factor",
    "fix",
    "leaves_of",
    "new_dim",
    "product",
    "resolve",
    "show",
    "split",
    "tag",
    "unify",
]
