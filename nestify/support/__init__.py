"""Plain Python and plain torch that know no graph.

Argument checks, option text, strict JSON, atomic files, worker processes, module trees, least
squares, covariances. A function that mentions a dim or a node belongs elsewhere.

Imports: errors. Start reading: ``arguments`` (how a wrong argument is told), ``module_tree``.
"""
