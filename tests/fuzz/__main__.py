"""``python -m tests.fuzz``: random models against every law, and a script for each that fails."""

from __future__ import annotations

import json
import sys
import time
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from nestify.errors import NestifyError, UsageError
from tests.fuzz.campaign import campaign, code_hash
from tests.fuzz.chunks import Settings, Tally, model_spec, run_chunk
from tests.fuzz.report import as_data, as_text
from tests.fuzz.table import form_table, op_of

MISMATCH = 4


def fuzz(
    models: Annotated[int, typer.Option("--models", min=1, help="How many models to try.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The seed of the models.")] = 0,
    only: Annotated[
        int | None, typer.Option("--only", min=0, help="Check this one model, and print it.")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="How many processes to use.")] = 1,
    ops: Annotated[
        list[str] | None, typer.Option("--op", help="An op that every model calls; repeatable.")
    ] = None,
    onnx_every: Annotated[
        int, typer.Option("--onnx-every", min=0, help="Ask onnxruntime too, one model in so many.")
    ] = 8,
    subnets: Annotated[int, typer.Option("--subnets", min=1, help="Random choices a model.")] = 2,
    storage: Annotated[
        Path | None, typer.Option("--storage", help="A file to resume the campaign from.")
    ] = None,
    scripts: Annotated[
        Path, typer.Option("--scripts", help="The folder for the scripts of failures.")
    ] = Path("fuzz-failures"),
    as_document: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Check random models: sliced = masked = extracted = onnxruntime.

    The models are grown from the op rules themselves. Model i of a seed depends on nothing but the
    seed and i. The exit code is 4 where a model breaks a law.
    """
    settings = Settings(
        seed, focus=tuple(ops or ()), onnx_every=onnx_every, subnets=subnets, scripts=str(scripts)
    )
    start = time.monotonic()
    try:
        _check_ops(settings.focus)
        with redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if only is None:
                tally = campaign(
                    settings, models, jobs=jobs, storage=storage, progress=_Progress(models)
                )
            else:
                tally = run_chunk(settings, [only])
    except NestifyError as error:
        _say(f"error: {error}")
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        again = f"; the same command goes on from {storage}" if storage else ""
        _say(f"interrupted{again}")
        raise typer.Exit(130) from None
    data = as_data(settings, tally, time.monotonic() - start, code_hash())
    if only is not None and not as_document:
        typer.echo(_source(settings, only))
    typer.echo(json.dumps(data, indent=2) if as_document else as_text(data))
    raise typer.Exit(MISMATCH if tally.mismatches else 0)


def _check_ops(ops: tuple[str, ...]) -> None:
    known = {op_of(name) for name in form_table()}
    for op in ops:
        if op not in known:
            raise UsageError(f"no form calls the op {op!r}; ops are named as in nestify.rules")


def _source(settings: Settings, index: int) -> str:
    from tests.fuzz.build import script

    forms = form_table()
    spec, _ = model_spec(settings, index, forms)
    return script(spec, forms, f"Model {index} of seed {settings.seed}.")


class _Progress:
    """A line on stderr every half a minute."""

    def __init__(self, models: int) -> None:
        self.models, self.start, self.last = models, time.monotonic(), -1e9

    def __call__(self, done: int, tally: Tally) -> None:
        now = time.monotonic()
        if now - self.last >= 30 or done == self.models:
            self.last = now
            _say(
                f"{done} of {self.models} models, {len(tally.mismatches)} mismatches, "
                f"{len(tally.pairs)} op pairs, {now - self.start:.0f} s"
            )


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    typer.run(fuzz)
