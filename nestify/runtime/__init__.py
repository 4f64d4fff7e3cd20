"""Run any subnet of a graph on slices of the full tensors.

``program`` holds a graph ready to run, ``run`` is the interpreter, ``bound_cache`` keeps what was
sliced; the prefix modules skip calls that two subnets share.

Imports: errors, support, dims, space, rules, capture, graph. Start reading: ``program``.
"""
