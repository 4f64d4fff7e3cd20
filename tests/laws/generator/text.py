"""From a spec to an ordinary `nn.Module`: its source, the module, a script for a bug report."""

from __future__ import annotations

import inspect
import linecache
import math
import zlib
from typing import Any

import torch
from torch import nn

from tests.laws.generator.core import KINDS, Code, Layer, ModelSpec, State, Value

IMPORTS = "import math\n\nimport torch\nimport torch.nn.functional as F\nfrom torch import nn\n"


class Writer:
    """Layers written one after another, and the states of all values so far."""

    def __init__(self, start: State) -> None:
        self.code = Code()
        self.values = [Value("x0", start)]

    def write(self, layer: Layer) -> list[int]:
        """The indices of the values that the layer appends."""
        first = len(self.values)
        self.code.index = first
        inputs = [self.values[i] for i in layer.inputs]
        expr, states = KINDS[layer.kind].emit(self.code, *inputs, **dict(layer.args))
        self.values += [Value(f"x{first + i}", state) for i, state in enumerate(states)]
        self.code.body.append(f"{', '.join(map(str, self.values[first:]))} = {expr}")
        return list(range(first, len(self.values)))


def answer(spec: ModelSpec) -> str:
    names = [f"x{i}" for i in spec.outputs]
    if spec.form == "one":
        return names[0]
    if spec.form == "tuple":
        return ", ".join(names)
    return "{" + ", ".join(f'"out{i}": {name}' for i, name in enumerate(names)) + "}"


def source(spec: ModelSpec) -> str:
    """The class `Model` of a spec as Python text."""
    writer = Writer(spec.start)
    for layer in spec.layers:
        writer.write(layer)
    init = ["super().__init__()", *writer.code.init]
    body = [*writer.code.body, f"return {answer(spec)}"]
    lines = [
        "class Model(nn.Module):",
        "    def __init__(self):",
        *(f"        {line}" for line in init),
        "",
    ]
    lines += ["    def forward(self, x0):", *(f"        {line}" for line in body)]
    return "\n".join(lines) + "\n"


def settle(model: nn.Module) -> None:
    """Weights that keep the scale of what flows, and norms that are not the identity."""
    for module in model.modules():
        norm = "Norm" in type(module).__name__
        for name, p in module.named_parameters(recurse=False):
            if module is model:
                continue  # the model's own parameters were drawn where they are made
            if norm or p.dim() == 1:
                nn.init.uniform_(
                    p, *((-0.3, 0.3) if "bias" in name else (0.7, 1.3) if norm else (0.1, 0.4))
                )
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(p)
            else:
                fan = p[0].numel()
                if isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
                    fan = p[:, 0].numel() // (module.groups * math.prod(module.stride))
                nn.init.normal_(p, 0.0, max(fan, 1) ** -0.5)
        for name, b in module.named_buffers(recurse=False):
            if norm and b.is_floating_point():
                nn.init.uniform_(b, *((0.5, 1.5) if name == "running_var" else (-0.3, 0.3)))


def build(spec: ModelSpec, seed: int = 0) -> nn.Module:
    """The model of a spec in eval mode; equal specs and seeds give bit-equal models."""
    text = IMPORTS + "\n\n" + source(spec)
    filename = f"<generated {zlib.crc32(text.encode()):08x}>"
    linecache.cache[filename] = (
        len(text),
        None,
        text.splitlines(keepends=True),
        filename,
    )  # for tracebacks
    scope: dict[str, Any] = {"__name__": "generated_model"}
    exec(compile(text, filename, "exec"), scope)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = scope["Model"]()
        settle(model)
    return model.eval()


def input_text(state: State, batch: int) -> str:
    sizes = ", ".join(map(str, (batch, *state.shape)))
    return f"torch.randint(19, ({sizes}))" if state.kind == "ids" else f"torch.randn({sizes})"


def example_inputs(
    spec: ModelSpec, batch: int = 2, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, ...]:
    """Positional arguments of the model's forward; integer inputs keep their type."""
    g = torch.Generator().manual_seed(seed)
    shape = (batch, *spec.start.shape)
    if spec.start.kind == "ids":
        return (torch.randint(19, shape, generator=g),)
    return (torch.randn(shape, generator=g, dtype=torch.float64).to(dtype),)


def script(spec: ModelSpec, seed: int = 0) -> str:
    """A Python script that builds the same model and runs it, without this package."""
    settling = inspect.getsource(settle)
    run = [
        f"# {spec!r}",
        f"torch.manual_seed({seed})",
        "model = Model()",
        "settle(model)",
        "model.eval()",
        "torch.manual_seed(0)",
        f"x = {input_text(spec.start, 2)}",
        "print(model(x))",
    ]
    return "\n\n".join([IMPORTS, source(spec), settling, "\n".join(run)]) + "\n"
