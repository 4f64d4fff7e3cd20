"""The report of a campaign, as text and as data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from nestify.rules import OPS
from tests.fuzz.chunks import Settings, Tally
from tests.fuzz.table import NOT_REACHED

__all__ = ["as_data", "as_text"]


def as_data(settings: Settings, tally: Tally, seconds: float, code: str) -> dict[str, Any]:
    """Every figure of the report."""
    covered = sorted(set(tally.ops) & set(OPS))
    return {
        "seed": settings.seed,
        "code": code,
        "models": tally.models,
        "outcomes": dict(tally.outcomes),
        "elastic_groups": tally.groups,
        "comparisons": tally.comparisons,
        "rules": len(OPS),
        "rules_covered": len(covered),
        "rules_not_covered": sorted(set(OPS) - set(tally.ops)),
        "rules_not_reached_by_design": {k: v for k, v in NOT_REACHED.items() if k in OPS},
        "rules_met_by_elastic_dims": len(set(tally.elastic) & set(OPS)),
        "op_pairs_covered": len(tally.pairs),
        "onnxruntime": dict(tally.onnx),
        "no_onnx_form": dict(tally.no_form),
        "refused_draws": dict(tally.refusals),
        "not_judged": tally.doubtful,
        "mismatches": [vars(m) for m in tally.mismatches],
        "seconds": round(seconds, 1),
        "cpu_seconds": round(tally.cpu_seconds, 1),
    }


def as_text(data: Mapping[str, Any]) -> str:
    """The report for people."""
    outcomes = ", ".join(f"{n:,} {name}" for name, n in _first(data["outcomes"], 9))
    refused = ", ".join(f"{n:,} {text}" for text, n in _first(data["refused_draws"], 6))
    onnx = Counter[str](data["onnxruntime"])
    share = data["rules_covered"] / max(data["rules"], 1)
    reached = data["rules_met_by_elastic_dims"] / max(data["rules"], 1)
    asked, resized = (_asked(onnx, at) for at in ("", " at another batch"))
    compared = f"{data['comparisons']:,} in float64, on {data['elastic_groups']:,} elastic groups"
    met = f"by elastic dims {data['rules_met_by_elastic_dims']} ({reached:.1%})"
    lines = [
        f"seed {data['seed']}, code {data['code']}",
        f"models tried          {data['models']:,}: {outcomes}",
        f"comparisons           {compared}",
        f"onnxruntime           {asked}",
        f"  at another batch    {resized}",
        f"rules covered         {data['rules_covered']} of {data['rules']} ({share:.1%}); {met}",
        f"op pairs covered      {data['op_pairs_covered']:,}",
        f"mismatches            {len(data['mismatches'])}",
        f"refused draws         {sum(data['refused_draws'].values()):,}: {refused}",
        f"seconds               {data['seconds']:,} ({data['cpu_seconds']:,} of a processor)",
    ]
    lines += [f"not judged            {text}" for text in data["not_judged"][:20]]
    if data["rules_not_covered"]:
        lines.append(f"rules not covered     {', '.join(data['rules_not_covered'])}")
    for found in data["mismatches"]:
        lines.append(
            f"MISMATCH model {found['index']}, {found['law']}: {found['message']}; "
            f"{found['steps']} calls in {found['script']}"
        )
    return "\n".join(lines)


def _first(counts: Mapping[str, int], many: int) -> list[tuple[str, int]]:
    return Counter[str](counts).most_common(many)


def _asked(onnx: Counter[str], at: str) -> str:
    """How networks fared in onnxruntime."""
    return ", ".join(
        (
            f"{onnx[f'equal{at}']:,} equal",
            f"{onnx[f'different{at}']:,} different",
            f"{onnx[f'no form{at}']:,} that the exporter refuses",
            f"{onnx[f'rounding{at}']:,} too sensitive to judge",
        )
    )
