"""The rooms of nestify: their order, every import between modules, and a drawing of them.

``python -m tests.rooms`` writes the drawing of docs/architecture.md anew.
"""

from __future__ import annotations

import ast
from collections.abc import Collection
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- rooms: begin -->\n", "<!-- rooms: end -->\n"

# The rooms from the ground up. A room imports from those above it in this list, and from no other;
# imports inside functions and under TYPE_CHECKING count. docs/architecture.md draws them.
ROOMS = (
    "errors",
    "support",
    "targets",
    "dims",
    "space",
    "rules",
    "capture",
    "graph",
    "emit",
    "runtime",
    "passes",
    "nested",
    "compiler",
    "training",
    "analysis",
    "explore",
    "cli",
    "__init__",
)
RANK = {room: rank for rank, room in enumerate(ROOMS)}
FILES = {"__init__", "errors", "compiler", "training"}  # at the top of nestify/, and no others
MOST_ROOMS = 14

# Beyond the order: what a room must not know though it comes earlier.
STRANGERS: dict[str, set[str]] = {
    "dims": {"targets"},
    "space": {"targets", "dims"},
    "rules": {"targets", "space"},
    "capture": {"targets", "space"},
    "graph": {"targets"},
    "emit": {"targets"},
    "runtime": {"targets", "emit"},
    "passes": {"targets", "emit"},  # a pass maps a graph to a graph
    "nested": {"passes"},
    "training": {"compiler"},
}


class Import(NamedTuple):
    """One import of ours: who, where, whom; modules as dotted names without ``nestify.``."""

    module: str
    place: str
    imported: str


def room_of(module: str) -> str:
    return module.split(".")[0]


def name_of(path: Path) -> str:
    """The module in a file, without ``nestify.``; a package by its folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[1:] if parts[0] == "nestify" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


@cache
def sources() -> dict[str, Path]:
    """Every Python file of the package by its module; links are not followed."""
    folders = [ROOT / "nestify", ROOT / "passes", ROOT / "targets"]
    return {name_of(path): path for folder in folders for path in sorted(folder.rglob("*.py"))}


def imported_modules(node: ast.AST, known: Collection[str]) -> list[str]:
    """Modules that an import statement names; ``__init__`` for nestify itself."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "nestify":
        here = f"{node.module}."
        names = [
            f"{here}{a.name}" if f"{here}{a.name}".removeprefix("nestify.") in known else here[:-1]
            for a in node.names
        ]
    else:
        return []
    ours = [name for name in names if name.split(".")[0] == "nestify"]
    return [name.removeprefix("nestify").removeprefix(".") or "__init__" for name in ours]


@cache
def imports() -> list[Import]:
    """Every import of one module of nestify by another."""
    return [
        Import(module, f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}", imported)
        for module, path in sources().items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for imported in imported_modules(node, sources().keys())
        if imported != module
    ]


def drawing() -> str:
    """The rooms as a Mermaid graph: an arrow from each room to those it imports first-hand.

    An arrow that a longer way makes superfluous is left out, as is the face of the package.
    """
    arrows: dict[str, set[str]] = {room: set() for room in ROOMS if room not in ("__init__",)}
    for module, _, imported in imports():
        here, there = room_of(module), room_of(imported)
        if here != there and {here, there} <= arrows.keys():
            arrows[here].add(there)
    reach: dict[str, set[str]] = {}
    for room in TopologicalSorter(arrows).static_order():
        reach[room] = arrows[room].union(*(reach[other] for other in arrows[room]))
    lines = ["```mermaid", "flowchart BT"]
    for room in arrows:
        count = sum(room_of(module) == room for module in sources())
        lines.append(f'    {room}["{room}{f" ({count})" if count > 1 else ""}"]')
    for room, others in arrows.items():
        beyond = set[str]().union(*(reach[other] for other in others))
        lines += [f"    {room} --> {other}" for other in ROOMS if other in others - beyond]
    return "\n".join([*lines, "```"]) + "\n"


def redrawn(page: str) -> str:
    """The page with today's drawing."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{drawing()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(redrawn(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
