"""The analysed graph: every dim has an expression, every elastic dim is a group.

``analysis`` runs the rules. The rest reads its result: residual blocks, memory, liveness, cost,
which slices a subnet selects; ``rewriter`` makes another network of it.

Imports: errors, support, dims, space, rules, capture. Start reading: ``graph``, ``analysis``.
"""
