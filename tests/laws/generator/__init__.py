"""Random models for the property tests.

A model is data (`ModelSpec`): hypothesis draws and shrinks it (`specs`), a seed draws it without
hypothesis (`random_spec`), `build` makes an ordinary module of it, `script` prints that module.
"""

from tests.laws.generator import attention, common, convs, maps, tokens
from tests.laws.generator.core import KINDS, Layer, ModelSpec, State, op
from tests.laws.generator.grow import coverage, random_spec, specs
from tests.laws.generator.text import build, example_inputs, script, source

__all__ = [
    "KINDS",
    "Layer",
    "ModelSpec",
    "State",
    "attention",
    "build",
    "common",
    "convs",
    "coverage",
    "example_inputs",
    "maps",
    "op",
    "random_spec",
    "script",
    "source",
    "specs",
    "tokens",
]
