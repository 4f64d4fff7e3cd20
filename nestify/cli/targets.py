"""``nestify targets list`` and ``nestify targets show NAME``."""

from __future__ import annotations

from typing import Annotated

import typer

from nestify.cli.common import DebugOption, JsonOption, as_json, command, table

targets_app = typer.Typer(help="The devices that can be planned for.", no_args_is_help=True)


@targets_app.command("list")
@command
def list_command(as_document: JsonOption = False, debug: DebugOption = False) -> str:
    """List the targets.

    Example: nestify targets list
    """
    from nestify.targets import list_targets, load_target

    targets = [load_target(name) for name in list_targets()]
    if as_document:
        names = [{"name": t.name, "description": t.description} for t in targets]
        return as_json("targets list", {"targets": names})
    return table([(t.name, t.description) for t in targets], ("target", "latency"))


@targets_app.command("show")
@command
def show_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="One of `nestify targets list`.")],
    as_document: JsonOption = False,
    debug: DebugOption = False,
) -> str:
    """Show one target.

    Example: nestify targets show cpu
    """
    from nestify.targets import load_target

    target = load_target(name)
    fields = {"name": target.name, "description": target.description, "step": target.step}
    if as_document:
        return as_json("targets show", fields)
    return table(list(fields.items()), (), colalign=("left", "left")).strip("-\n ")
