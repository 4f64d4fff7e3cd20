"""The walls of the house: links, file sizes, the direction of imports, names of modules."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
LINES_MAX = 400

# The layers from the ground up, each with its modules and packages. A module imports from its own
# layer (without cycles) and from those below; imports inside functions and under TYPE_CHECKING
# count. A new module gets a place here.
LAYERS: dict[str, tuple[str, ...]] = {
    "errors": ("errors",),
    "ground": (
        "files",
        "options",
        "processes",
        "usercode",
        "valid",
        "space",
        "draws",
        "trees",
        "uncompiled",
        "compare",
        "moments",
        "fitting",
    ),
    "sources": ("zoo", "sources"),
    "dims": ("dims",),
    "rules": ("rules",),
    "capture": (
        "modes",
        "first_forward",
        "inputs",
        "tracing",
        "folding",
        "gradient_trace",
        "autocasting",
        "lowering",
        "training_trace",
        "batch_trace",
        "capture",
    ),
    "groups": ("batches", "blocks", "groups"),
    "slicing": ("slicing", "keeping", "polynomials", "aliasing", "depth", "rewriting"),
    "cost": ("modules", "peaks", "cost"),
    "targets": ("targets",),
    "networks": (
        "fixed_batch",
        "holding",
        "calibration",
        "spelling",
        "rebuild",
        "extract",
        "original",
        "padding",
        "masks",
        "overlays",
        "absent",
        "masked",
        "layouts",
        "running",
        "program",
        "bindings",
        "cuts",
        "recognition",
        "states",
        "reuse",
        "verification",
        "latencies",
        "activation",
        "patches",
        "walking",
        "layer_calls",
        "refitting",
        "nested",
        "training",
    ),
    "passes": ("passes",),
    "compiling": ("faithful", "compiling"),
    "analysis": ("analysis",),
    "emit": ("emit",),
    "plan": ("constraints", "fingerprints", "pareto", "plans"),
    "search": ("explore",),
    "api": ("api",),
    "cli": ("cli",),
    "fuzz": ("fuzz",),
    "package": ("__init__",),
}
RANK = {module: rank for rank, layer in enumerate(LAYERS.values()) for module in layer}

# Beyond the order: what a module must not know though it lies no higher.
STRANGERS: dict[str, set[str]] = {
    "passes": {"targets", "extract", "nested"},  # a pass maps a graph to a graph
    "targets": {"capture", "groups", "slicing", "modules"},  # a target runs what it is given
    "emit": {"passes", "targets"},
}
FACES = {"__init__", "api", "cli"}  # these put everything together, and may import everything
PUBLIC_FUNCTIONS = {"trace", "transform", "estimate", "search", "export", "save", "load"}


class Import(NamedTuple):
    """One import of ours: who, where, whom."""

    module: str
    place: str
    imported: str


def sources() -> Iterator[tuple[str, Path]]:
    """Every Python file of the package with its top-level module; links are not followed."""
    for path in sorted(ROOT.glob("nestify/*.py")):
        yield path.stem, path
    for folder in sorted(path for path in ROOT.glob("nestify/*/") if not path.is_symlink()):
        yield from ((folder.name, path) for path in sorted(folder.rglob("*.py")))
    for name in ("passes", "targets"):
        yield from ((name, path) for path in sorted((ROOT / name).rglob("*.py")))


def imported_modules(node: ast.AST, known: set[str]) -> list[str]:
    """Top-level modules that an import statement names; ``__init__`` for nestify itself."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module == "nestify":
        names = [f"nestify.{a.name}" if a.name in known else "nestify" for a in node.names]
    elif isinstance(node, ast.ImportFrom):
        names = [node.module or ""]
    else:
        return []
    parts = [name.split(".") for name in names]
    return [part[1] if len(part) > 1 else "__init__" for part in parts if part[0] == "nestify"]


def imports() -> list[Import]:
    """Every import of one part of nestify by another."""
    files = list(sources())
    known = {module for module, _ in files}
    return [
        Import(module, f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}", imported)
        for module, path in files
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for imported in imported_modules(node, known)
        if imported != module
    ]


@pytest.mark.parametrize("name", ["passes", "targets"])
def test_link_resolves(name: str) -> None:
    link, real = ROOT / "nestify" / name / "__init__.py", ROOT / name / "__init__.py"
    assert link.is_file(), (
        f"nestify/{name} is not a link to ../{name}: enable git symlinks "
        f"(git config core.symlinks true; git checkout -- nestify/{name})"
    )
    assert link.samefile(real), f"nestify/{name} must be a link to ../{name}, not a copy"


def test_files_are_short() -> None:
    lines = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for _, path in sources()
    }
    long = [f"{path}: {count} lines" for path, count in lines.items() if count > LINES_MAX]
    assert not long, f"one idea a file, {LINES_MAX} lines at most:\n" + "\n".join(long)


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("import nestify", ["__init__"]),
        ("import nestify.dims as d, torch", ["dims"]),
        ("from nestify import dims, transform", ["dims", "__init__"]),
        ("from nestify.rules.calls import Call", ["rules"]),
        ("from nestifyx import dims", []),
    ],
)
def test_import_statements_are_read_right(statement: str, found: list[str]) -> None:
    assert imported_modules(ast.parse(statement).body[0], {"dims", "rules"}) == found


def test_every_module_has_a_layer() -> None:
    homeless = sorted({module for module, _ in sources()} - RANK.keys())
    assert not homeless, f"no layer in {Path(__file__).name} for: {', '.join(homeless)}"


def test_imports_run_one_way() -> None:
    wrong = [
        f"{place}: {module} imports {imported}"
        for module, place, imported in imports()
        if module not in FACES and {module, imported} <= RANK.keys()
        if RANK[imported] > RANK[module] or imported in STRANGERS.get(module, ())
    ]
    assert not wrong, "imports against the layers:\n" + "\n".join(wrong)


def test_imports_make_no_cycle() -> None:
    graph: dict[str, set[str]] = {}
    for module, _, imported in imports():
        if module not in FACES:
            graph.setdefault(module, set()).add(imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("modules import each other: " + " <- ".join(error.args[1]))


def test_no_module_has_the_name_of_a_public_function() -> None:
    clash = PUBLIC_FUNCTIONS & {module for module, _ in sources()}
    assert not clash, f"nestify.{min(clash)} would mean a module and a function"
