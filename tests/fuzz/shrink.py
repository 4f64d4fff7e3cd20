"""Delta debugging over specs: the smallest model that still breaks the same law."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch

from tests.fuzz.build import Builder, build
from tests.fuzz.forms import Form, RejectedError
from tests.fuzz.spec import BATCH, Source, Spec, Step

__all__ = ["shrink"]


def shrink(
    spec: Spec, forms: Mapping[str, Form], breaks: Callable[[Spec], bool], budget: int = 250
) -> Spec:
    """Return a smaller spec that still ``breaks``, after at most ``budget`` trials.

    Steps give way to their own operand or to a parameter, operands to parameters, draws and sizes
    to smaller ones; a model is smaller by steps, then by live operands, then by sizes.
    """
    tried: set[Spec] = {spec}
    improved = True
    while improved and budget > 0:
        improved = False
        for candidate in _smaller(spec, forms):
            if candidate in tried or _measure(candidate) >= _measure(spec):
                continue
            tried.add(candidate)
            try:
                build(candidate, forms)
                budget -= 1
                broken = breaks(candidate)
            except RejectedError:  # at once, or later where its values are drawn anew
                continue
            if broken:
                spec, improved = candidate, True
                break
            if budget <= 0:
                break
    return spec


def _measure(spec: Spec) -> tuple[int, ...]:
    operands = sum(len(step.operands) for step in spec.steps)
    sizes = sum(torch.Size(s.shape).numel() + 10 * s.is_input for s in spec.sources)
    draws = sum(sum(step.choices) for step in spec.steps)
    parts = len(spec.outputs) + len(spec.traits)
    return len(spec.steps), parts, operands, len(spec.sources), sizes + draws


def _smaller(spec: Spec, forms: Mapping[str, Form]) -> Iterator[Spec]:
    """Candidates, those that drop most first."""
    builder = build(spec, forms)
    if len(spec.outputs) > 1:
        for name in spec.outputs:
            yield replace(spec, outputs=(name,)).pruned()
    for trait in spec.traits:
        yield replace(spec, traits=tuple(other for other in spec.traits if other != trait))
    for at in range(len(spec.steps) // 2, len(spec.steps)):
        yield from _cut(spec, builder, at)
    for at in range(len(spec.steps)):
        yield from _without(spec, builder, at)
    for at, step in enumerate(spec.steps):
        for operand in step.operands[1:]:
            fewer = tuple(o for o in step.operands if o != operand)
            yield _with(spec, at, replace(step, operands=fewer)).pruned()
    for at, step in enumerate(spec.steps):
        for i, draw in enumerate(step.choices):
            for lower in sorted({0, draw // 2, draw - 1} & set(range(draw))):
                lowered = (*step.choices[:i], lower, *step.choices[i + 1 :])
                yield _with(spec, at, replace(step, choices=lowered))
    for at, source in enumerate(spec.sources):
        for smaller in _small_sources(source):
            yield replace(spec, sources=(*spec.sources[:at], smaller, *spec.sources[at + 1 :]))


def _with(spec: Spec, at: int, step: Step) -> Spec:
    return spec.with_steps((*spec.steps[:at], step, *spec.steps[at + 1 :]))


def _cut(spec: Spec, builder: Builder, at: int) -> Iterator[Spec]:
    """The model that ends with step ``at``."""
    step = spec.steps[at]
    for name in builder.values:
        if step.gives(name) and spec.outputs != (name,):
            yield replace(spec, outputs=(name,)).pruned()


def _without(spec: Spec, builder: Builder, at: int) -> Iterator[Spec]:
    """The model without step ``at``: an operand, an input or a parameter stands in for its
    values.
    """
    step = spec.steps[at]
    gone = [name for name in builder.values if step.gives(name)]
    for _, operand in step.operands:
        same = all(
            builder.values[name].shape == builder.values[operand].shape
            and builder.values[name].kind == builder.values[operand].kind
            for name in gone
        )
        if same:
            yield _renamed(spec, at, dict.fromkeys(gone, operand), ()).pruned()
    for is_input in (True, False):
        sources: list[Source] = []
        for i, name in enumerate(gone):
            value = builder.values[name]
            fresh = Source(
                f"{'x' if is_input else 'p'}{40 + 10 * step.number + i}",
                value.shape,
                value.kind,
                is_input=is_input,
                below=int(value.tensor.max()) + 1 if value.kind == "int" else 0,
            )
            if not is_input or value.shape[:1] == (BATCH,):
                sources.append(fresh)
        if len(sources) == len(gone):
            names = dict(zip(gone, (s.name for s in sources), strict=True))
            yield _renamed(spec, at, names, tuple(sources)).pruned()


def _renamed(spec: Spec, at: int, names: Mapping[str, str], sources: tuple[Source, ...]) -> Spec:
    steps = tuple(
        replace(step, operands=tuple((o, names.get(v, v)) for o, v in step.operands))
        for i, step in enumerate(spec.steps)
        if i != at
    )
    outputs = tuple(dict.fromkeys(names.get(name, name) for name in spec.outputs))
    return replace(spec, sources=(*spec.sources, *sources), steps=steps, outputs=outputs)


def _small_sources(source: Source) -> Iterator[Source]:
    for i, size in enumerate(source.shape):
        if source.is_input and i == 0:
            continue
        for less in sorted({1, 2, size // 2, size - 1} & set(range(1, size))):
            yield replace(source, shape=(*source.shape[:i], less, *source.shape[i + 1 :]))
