"""A subnet becomes a GraphModule of plain torch modules, or an object of the user's own class.

Imports: errors, support, dims, space, rules, capture, graph. Start reading: ``extract``.
"""
