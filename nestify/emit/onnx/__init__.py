"""Write ONNX files: the graph, names of its axes, vectors as initializers.

Imports: errors, support and emit. Start reading: ``file``.
"""
