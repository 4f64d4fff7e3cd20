"""``nestify inspect``: what of a model is elastic, and why the rest is not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nestify.cli.common import DebugOption, JsonOption, ModelArgument, as_json, command, table

if TYPE_CHECKING:
    from nestify.graph.graph import Graph

SHOWN_SITES = 3


@command
def inspect_command(
    model: ModelArgument, as_document: JsonOption = False, debug: DebugOption = False
) -> str:
    """Show a model's elastic dims, its droppable blocks, and why each fixed dim is fixed.

    \b
    Examples:
      nestify inspect examples/mobilenet_v2.py
      nestify inspect timm:resnet50 --json
    """  # noqa: D301  typer keeps the lines after a backspace as they are
    import nestify
    from nestify.cli.model_reference import load_source

    source = load_source(model)
    graph = nestify.trace(source.model, source.example_inputs, source.example_kwargs)
    return as_json("inspect", {"model": model, **_document(graph)}) if as_document else _text(graph)


def _document(graph: Graph) -> dict[str, Any]:
    return {
        "batch": {"free": graph.batch is not None, "reason": graph.batch_reason},
        "coverage": {"params": graph.coverage.params, "macs": graph.coverage.macs},
        "groups": [
            {
                "name": group.name,
                "kind": group.kind,
                "size": group.size,
                "sites": [[name, dim] for name, dim in group.sites],
            }
            for group in graph.groups
        ],
        "blocks": [
            {"name": block.name, "entry": str(block.entry), "exit": str(block.exit)}
            for block in graph.blocks
        ],
        "fixed": [
            {
                "size": dim.size,
                "sites": [[name, position] for name, position in dim.sites],
                "reason": dim.reason,
                "advice": dim.advice,
                "op": dim.op,
                "node": dim.node,
                "source_line": dim.source_line,
            }
            for dim in graph.fixed
        ],
    }


def _text(graph: Graph) -> str:
    groups = [(g.name, g.kind, g.size, len(g.sites), _sites(g.sites)) for g in graph.groups]
    fixed = [
        (d.size, _sites(d.sites), d.reason, d.op or "", d.source_line or "", d.advice)
        for d in graph.fixed
    ]
    blocks = [(b.name, b.entry, b.exit) for b in graph.blocks]
    coverage = graph.coverage
    parts = [
        _batch(graph),
        (
            f"elastic dims: {len(groups)}, in {coverage.params:.1%} of the parameters and "
            f"{coverage.macs:.1%} of the MACs"
        ),
        table(groups, ("group", "kind", "size", "sites", "where")) if groups else "",
        f"droppable blocks: {len(blocks)}",
        table(blocks, ("block", "entry", "exit")) if blocks else "",
        f"fixed dims: {len(fixed)}",
        table(fixed, ("size", "where", "why", "op", "line", "what would free it")) if fixed else "",
    ]
    return "\n\n".join(part for part in parts if part)


def _batch(graph: Graph) -> str:
    if graph.batch is not None:
        return "batch: free"
    return f"batch: fixed, as {graph.batch_reason}" if graph.batch_reason else ""


def _sites(sites: Any) -> str:
    shown = ", ".join(f"{name}:{dim}" for name, dim in sites[:SHOWN_SITES])
    more = len(sites) - SHOWN_SITES
    return f"{shown}, +{more} more" if more > 0 else shown
