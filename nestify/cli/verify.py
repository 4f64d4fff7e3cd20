"""``nestify verify``: the nested, extracted and ONNX forms of a subnet give the same outputs."""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nestify.cli.common import (
    DEFAULT_RECIPE,
    DebugOption,
    JsonOption,
    ModelArgument,
    RecipeOption,
    SeedOption,
    as_json,
    command,
    progress,
    say,
    table,
)
from nestify.errors import VerificationError

if TYPE_CHECKING:
    from torch import nn

    from nestify.nested.model import NestedModel
    from nestify.space import Subnet


@dataclass(frozen=True)
class Row:
    """The largest relative errors of one subnet; None where the comparison does not apply."""

    name: str
    macs_share: float
    original: float | None
    extracted: float
    onnxruntime: float | None


@command
def verify_command(
    model: ModelArgument,
    recipe: RecipeOption = DEFAULT_RECIPE,
    subnets: Annotated[
        int, typer.Option("--subnets", min=1, help="How many random subnets to check.")
    ] = 3,
    seed: SeedOption = 0,
    as_document: JsonOption = False,
    debug: DebugOption = False,
) -> str:
    """Check that the nested, the extracted and the ONNX form of subnets give the same outputs.

    The largest subnet is checked too, and must equal the original model bit for bit, unless the
    recipe has a pass that rewrites it (root-8). Errors are
    relative to the largest output; 1e-5 is allowed in float32, 1e-10 in float64 (which onnxruntime
    does not run).

    \b
    Examples:
      nestify verify examples/mobilenet_v2.py
      nestify verify model.py --recipe fn3-channel --subnets 20 --json
    """  # noqa: D301  typer keeps the lines after a backspace as they are
    import torch

    from nestify.cli.model_reference import load_source
    from nestify.cli.plan import nested_from

    say(f"loading {model}")
    source = load_source(model)
    original = copy.deepcopy(source.model).eval()
    nested = nested_from(source, recipe).eval()
    generator = torch.Generator().manual_seed(seed)
    space = nested.space
    chosen = [("largest", space.largest())]
    chosen += [(f"random {i + 1}", space.sample(generator)) for i in range(subnets)]
    tolerance = _tolerance(nested)
    with progress() as show:
        rows: list[Row] = []
        for i, (name, subnet) in enumerate(chosen):
            show("checking subnets", i, len(chosen))
            same = original if i == 0 and nested.graph.original is None else None
            rows.append(_check(name, subnet, nested, same, tolerance, seed))
    reordered = any(change.preserves for change in nested.graph.changes)
    _raise_if_wrong(rows, tolerance, tolerance if reordered else 0.0)
    if as_document:
        fields = {"model": model, "recipe": recipe, "tolerance": tolerance, "seed": seed}
        return as_json("verify", {**fields, "subnets": [asdict(row) for row in rows]})
    return _text(rows, tolerance)


def _tolerance(nested: NestedModel) -> float:
    import torch

    double = any(p.dtype == torch.float64 for p in nested.parameters())
    return 1e-10 if double else 1e-5


def _check(
    name: str,
    subnet: Subnet,
    nested: NestedModel,
    original: nn.Module | None,
    tolerance: float,
    seed: int,
) -> Row:
    from nestify.emit.call import Call, random_like

    call = Call(nested.example_inputs, dict(nested.example_kwargs or {}))
    calls = [call, random_like(call, seed)]
    slim = nested.extract(subnet).eval()
    with nested.activate(subnet):
        extracted = max(_error(nested, slim, one) for one in calls)
        same = None if original is None else max(_error(original, nested, one) for one in calls)
    costs = nested.estimate([nested.space.largest(), subnet])
    share = float(costs.macs[1]) / max(float(costs.macs[0]), 1.0)
    onnx = _onnx_error(slim, nested) if tolerance == 1e-5 else None
    return Row(name, share, same, extracted, onnx)


def _error(expected: nn.Module, actual: nn.Module, call: Any) -> float:
    from nestify.capture.export_program import without_fast_path
    from nestify.emit.call import tensors_of
    from nestify.emit.check import deviation

    with without_fast_path():
        pairs = zip(tensors_of(call.run(expected)), tensors_of(call.run(actual)), strict=True)
        return max((deviation(a, b) for a, b in pairs), default=0.0)


def _onnx_error(slim: nn.Module, nested: NestedModel) -> float:
    from nestify.emit import export

    with TemporaryDirectory() as folder:
        report = export(
            slim,
            Path(folder) / "slim.onnx",
            example_inputs=nested.example_inputs,
            example_kwargs=nested.example_kwargs,
            tolerance=math.inf,
        )
    return report.error


def _raise_if_wrong(rows: list[Row], tolerance: float, to_original: float) -> None:
    """``to_original`` is allowed between the largest subnet and the original: nothing, unless a
    pass adds up the same sums in another order.
    """
    for row in rows:
        if row.original is not None and not row.original <= to_original:
            wanted = f"allowed is {to_original:.0e}" if to_original else "the bits must be equal"
            raise VerificationError(
                f"the largest subnet is not the original model: relative error {row.original:.1e} "
                f"where {wanted}"
            )
        errors = {"extracted model": row.extracted, "ONNX file": row.onnxruntime or 0.0}
        for form, error in errors.items():
            if not error <= tolerance:
                raise VerificationError(
                    f"subnet {row.name!r}: the {form} differs from the nested model by {error:.1e} "
                    f"(relative), allowed is {tolerance:.0e}"
                )


def _text(rows: list[Row], tolerance: float) -> str:
    def shown(error: float | None) -> str:
        return "" if error is None else "equal" if error == 0 else f"{error:.1e}"

    cells = [
        (r.name, f"{r.macs_share:.0%}", shown(r.original), shown(r.extracted), shown(r.onnxruntime))
        for r in rows
    ]
    headers = ("subnet", "MACs", "original", "extracted", "onnxruntime")
    worst = max(max(r.extracted, r.onnxruntime or 0.0) for r in rows)
    return "\n".join(
        [
            table(cells, headers, colalign=("left", *["right"] * 4)),
            "",
            f"verified: the largest relative error is {worst:.1e}, allowed is {tolerance:.0e}",
        ]
    )
