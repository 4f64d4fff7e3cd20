"""The family of networks in one set of weights.

``model`` is the module that users train. Beside it: masks, refit, switchable norms, verification,
the stream of draws.

Imports: all rooms up to runtime and emit. Start reading: ``model``.
"""
