"""The rewrite passes, one a file; imported as ``nestify.passes``.

A pass is a frozen dataclass: ``name``, ``role``, its options as fields, ``apply(graph, data)``. A
recipe is text, passes joined by ``+``, options in braces.

Imports: all rooms up to runtime, and not emit. Start reading: ``protocol``, ``runner``, then
``fn3_channel`` and ``ordered_dropout``.
"""

from nestify.passes.protocol import NO_DATA, Data, Pass
from nestify.passes.recipe import PASSES, parse_recipe, recipe_text, without_data
from nestify.passes.runner import apply_passes, data_for

__all__ = [
    "NO_DATA",
    "PASSES",
    "Data",
    "Pass",
    "apply_passes",
    "data_for",
    "parse_recipe",
    "recipe_text",
    "without_data",
]
