"""What all commands share: how they end, what goes to which stream, and their common options.

A command is a function that returns what belongs on stdout. While it runs, stdout points to stderr:
a ``print`` in a model file cannot spoil the one JSON document that ``--json`` promises.
"""

from __future__ import annotations

import functools
import json
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TextIO

import typer

from nestify.errors import NestifyError

P = ParamSpec("P")

DEFAULT_RECIPE = "fn3-channel+fn3-neuron+fn3-head+fn3-path"

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="model.py, model.py:name, package.module:name, timm:NAME, torchvision:NAME or "
        "transformers:CONFIG (a local folder or JSON file).",
    ),
]
RecipeOption = Annotated[
    str, typer.Option("--recipe", help="The passes that nest the model, joined by +.")
]
TargetOption = Annotated[
    list[str], typer.Option("--target", help="A target to plan for; may be repeated.")
]
ConstraintOption = Annotated[
    list[str],
    typer.Option(
        "--constraint",
        metavar="NAME=NUMBER",
        help="An upper bound on macs, params, size_bytes, activation_bytes or latency_ms; "
        "latency_ms@TARGET bounds it on one of several targets; may be repeated.",
    ),
]
SeedOption = Annotated[
    int,  # a plan file holds 63 bits
    typer.Option("--seed", min=0, max=2**63 - 1, help="The seed of what is drawn."),
]
RefitOption = Annotated[
    bool,
    typer.Option(
        "--refit",
        help="Correct the weights of what is exported, by least squares on the model file's "
        "calibration, to follow the whole network.",
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout, and nothing else.")
]
DebugOption = Annotated[
    bool, typer.Option("--debug", help="Show the traceback of an error, and all warnings.")
]


def command(function: Callable[P, str]) -> Callable[P, None]:
    """Make a command of a function that returns its output: print it, or end with a message."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        debug = bool(kwargs.get("debug"))
        try:
            with _stdout_to_stderr(), _shown_warnings(debug):
                output = function(*args, **kwargs)
        except (NestifyError, KeyboardInterrupt, Exception) as error:
            raise typer.Exit(_end(error, debug)) from None
        typer.echo(output)

    return run


@contextmanager
def _stdout_to_stderr() -> Generator[None]:
    """Take what is written to stdout to stderr: by Python, libraries in C, and child processes."""
    kept = None
    with redirect_stdout(sys.stderr):
        try:
            with suppress(OSError):  # one of the two is closed
                kept = os.dup(1)
                os.dup2(2, 1)
            yield
        finally:
            if sys.__stdout__ is not None:
                sys.__stdout__.flush()
            if kept is not None:
                os.dup2(kept, 1)
                os.close(kept)


def _end(error: BaseException, debug: bool) -> int:
    """Say on stderr how a command failed; return its exit code."""
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    if isinstance(error, KeyboardInterrupt):
        again = shlex.join(["nestify", *sys.argv[1:]])
        state = error.args[0] if error.args else "nothing was written; to run it again"
        say(f"interrupted: {state}: {again}", style="yellow")
        return 130
    if isinstance(error, NestifyError):
        say(f"error: {error}", style="red")
        return error.exit_code
    text = str(error).strip().splitlines()
    what = f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
    say(f"error: unexpected {what}; --debug shows the traceback", style="red")
    return 1


def say(text: str, style: str = "") -> None:
    """Write a message to stderr, coloured on a terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def as_json(kind: str, fields: Mapping[str, Any]) -> str:
    """Return the document that ``--json`` prints."""
    return json.dumps({"command": kind, "version": 1, **fields}, indent=2)


def table(rows: Sequence[Sequence[object]], headers: Sequence[str], **options: Any) -> str:
    """Lay out rows as text; cells are shown as they are given."""
    from tabulate import tabulate

    return tabulate(rows, headers=headers, tablefmt="simple", disable_numparse=True, **options)


@contextmanager
def _shown_warnings(debug: bool) -> Generator[None]:
    """Show nestify's own warnings as messages; those of libraries are for their developers."""
    here = str(Path(__file__).resolve().parents[1])

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        ours = category.__module__.startswith("nestify") or filename.startswith(here)
        if ours or debug:
            say(f"warning: {message}", style="yellow")

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = show
        yield


@contextmanager
def progress() -> Generator[Callable[..., None]]:
    """Yield ``progress(stage, done, total, note)``: bars on a terminal, else one line a stage.

    A bar shows the note and the time that is left; a total of 0 is one that nobody knows.
    """
    if not sys.stderr.isatty():
        seen: set[str] = set()

        def line(stage: str, done: int, total: int, note: str = "") -> None:
            if stage not in seen:
                seen.add(stage)
                say(f"{stage} ...")

        yield line
        return

    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def bar(stage: str, done: int, total: int, note: str = "") -> None:
            if stage not in tasks:
                for before in tasks.values():  # a search may need less than it may spend
                    bars.remove_task(before)
                tasks.clear()
                tasks[stage] = bars.add_task(stage, total=total or None, note=note)
            bars.update(tasks[stage], completed=done, total=total or None, note=note)

        yield bar
