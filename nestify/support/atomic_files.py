"""Writes that happen or do not: a staging folder beside the target, fsync, then one rename.

A reader never sees half a file, and a failure at any point leaves the old state and no litter. What
is not covered: a power cut between the two renames that replace an existing *folder* leaves the old
one under its staging name.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

from nestify.errors import UsageError

_SHOWN = 40  # characters of the target's name in that of its staging folder


@contextmanager
def staging(target: Path) -> Generator[Path]:
    """An empty folder beside ``target``, on the same file system, gone afterwards whatever happens.

    >>> with staging(Path("slim.onnx")) as folder:
    ...     _ = (folder / "slim.onnx").write_text("data")
    ...     _ = publish_files(folder, ["slim.onnx"], Path())
    >>> Path("slim.onnx").read_text()
    'data'
    """
    parent = parent_of(target)
    try:
        folder = Path(
            tempfile.mkdtemp(prefix=f".{target.name[:_SHOWN]}.tmp-{os.getpid()}-", dir=parent)
        )
    except OSError as error:
        raise UsageError(
            f"cannot write into {parent}: {error.strerror}; choose a folder you may write to"
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def parent_of(target: Path) -> Path:
    """The folder that ``target`` is to stand in.

    Raises:
        UsageError: there is none.
    """
    parent = target.absolute().parent
    if not parent.is_dir():
        raise UsageError(f"cannot write {target}: there is no folder {parent}; create it first")
    return parent


def publish_files(stage: Path, names: Iterable[str], folder: Path) -> tuple[Path, ...]:
    """Move the named files of ``stage`` into ``folder``, in order, each by one rename.

    Raises:
        UsageError: a folder stands where a file would.
    """
    names = tuple(names)
    for name in names:
        if (folder / name).is_dir():
            raise UsageError(
                f"cannot write {folder / name}: a folder of that name exists; remove it first"
            )
        _sync(stage / name)
    for name in names:
        (stage / name).replace(folder / name)
    _sync(folder)
    return tuple(folder / name for name in names)


def publish_folder(stage: Path, target: Path, owned: frozenset[str]) -> tuple[Path, ...]:
    """Rename ``stage`` to ``target``, replacing a folder that holds ``owned`` files and no others.

    Raises:
        UsageError: ``target`` holds something that this export did not write.
    """
    for file in stage.iterdir():
        _sync(file)
    _sync(stage)
    stage.chmod(0o777 & ~_umask())
    if target.exists():
        check_replaceable(target, owned)
        # mkdtemp gives a name that is free, and rename replaces an empty folder.
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name[:_SHOWN]}.old-", dir=target.parent))
        target.replace(aside)
        try:
            stage.replace(target)
        except OSError:
            aside.replace(target)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    else:
        stage.replace(target)
    _sync(target.parent)
    return tuple(sorted(target.iterdir()))


def check_replaceable(target: Path, owned: frozenset[str]) -> None:
    """Refuse to replace a folder that holds anything but ``owned`` files.

    Raises:
        UsageError: naming what was found there.
    """
    if not target.exists():
        return
    if not target.is_dir():
        raise UsageError(
            f"cannot write a folder to {target}: a file of that name exists; remove it first"
        )
    foreign = sorted(entry.name for entry in target.iterdir() if entry.name not in owned)
    if foreign:
        raise UsageError(
            f"cannot write to {target}: the folder holds {', '.join(foreign[:3])}, which an export "
            "would delete; name a new or an empty folder"
        )


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    # The only way to read the mask is to set it; mkdtemp made the folder private, a result is not.
    mask = os.umask(0)
    os.umask(mask)
    return mask
