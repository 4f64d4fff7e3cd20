"""The typer application: which commands there are."""

from __future__ import annotations

import sys

import typer

from nestify.cli.export import export_command
from nestify.cli.inspect import inspect_command
from nestify.cli.plan import plan_command
from nestify.cli.targets import targets_app
from nestify.cli.verify import verify_command

app = typer.Typer(
    name="nestify",
    help="Find every smaller network inside a PyTorch model, and ship the one that fits.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("plan")(plan_command)
app.command("inspect")(inspect_command)
app.command("export")(export_command)
app.command("verify")(verify_command)
app.add_typer(targets_app, name="targets")


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        app(prog_name="nestify")
    except KeyboardInterrupt:  # while a module was being imported, outside of any command
        sys.exit(130)
