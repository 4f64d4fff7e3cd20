"""The rooms of the house: links, sizes of files and functions, the direction of imports, names."""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter

import pytest

from tests.rooms import (
    FILES,
    MOST_ROOMS,
    PAGE,
    RANK,
    ROOMS,
    ROOT,
    STRANGERS,
    imported_modules,
    imports,
    redrawn,
    room_of,
    sources,
)

LINES_MAX = 400
FUNCTION_LINES_MAX = 50
PUBLIC_FUNCTIONS = {"trace", "transform", "estimate", "search", "export", "save", "load"}


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
        for path in sources().values()
    }
    long = [f"{path}: {count} lines" for path, count in lines.items() if count > LINES_MAX]
    assert not long, f"one idea a file, {LINES_MAX} lines at most:\n" + "\n".join(long)


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function's statements: its signature and docstring are for whoever calls it."""
    first = function.body[1:2] if ast.get_docstring(function) else function.body[:1]
    return (function.end_lineno or 0) - first[0].lineno + 1 if first else 0


def test_functions_are_short() -> None:
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.name} has {lines_of(node)} lines"
        for path in sources().values()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if lines_of(node) > FUNCTION_LINES_MAX
    ]
    assert not long, f"a function has {FUNCTION_LINES_MAX} lines at most:\n" + "\n".join(long)


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("import nestify", ["__init__"]),
        ("import nestify.dims as d, torch", ["dims"]),
        ("from nestify import dims, transform", ["dims", "__init__"]),
        ("from nestify.rules.call import Call", ["rules.call"]),
        ("from nestify.rules import call, Op", ["rules.call", "rules"]),
        ("from nestifyx import dims", []),
    ],
)
def test_import_statements_are_read_right(statement: str, found: list[str]) -> None:
    known = {"dims", "rules", "rules.call"}
    assert imported_modules(ast.parse(statement).body[0], known) == found


def test_every_module_has_a_room() -> None:
    rooms = {room_of(module) for module in sources()}
    assert rooms == set(ROOMS)
    assert len(rooms - FILES) <= MOST_ROOMS
    assert {path.stem for path in (ROOT / "nestify").glob("*.py")} == FILES


def test_a_room_says_what_it_is_for_and_where_to_start() -> None:
    for room in sorted(set(ROOMS) - FILES):
        said = ast.get_docstring(ast.parse(sources()[room].read_text(encoding="utf-8"))) or ""
        assert "Imports:" in said, f"{room}/__init__.py does not say what it may import"
        assert "Start reading:" in said, f"{room}/__init__.py does not say where to start"
        for start in re.findall(r"``(\w+)``", said.partition("Start reading:")[2]):
            assert f"{room}.{start}" in sources(), f"{room}/__init__.py names no module {start!r}"


def test_imports_run_one_way_between_rooms() -> None:
    wrong = [
        f"{place}: {module} imports {imported}"
        for module, place, imported in imports()
        for here, there in [(room_of(module), room_of(imported))]
        if here not in ("__init__", "cli")  # these two put everything together
        if RANK[there] > RANK[here] or there in STRANGERS.get(here, ())
    ]
    assert not wrong, "imports against the order of the rooms:\n" + "\n".join(wrong)


def test_imports_make_no_cycle_between_modules() -> None:
    graph: dict[str, set[str]] = {}
    for module, _, imported in imports():
        if "__init__" not in (module, imported):
            graph.setdefault(module, set()).add(imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("modules import each other: " + " <- ".join(error.args[1]))


def test_no_room_has_the_name_of_a_public_function() -> None:
    clash = PUBLIC_FUNCTIONS & set(ROOMS)
    assert not clash, f"nestify.{min(clash)} would mean a module and a function"


def test_the_drawing_of_the_rooms_is_of_this_code() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == redrawn(page), "run: python -m tests.rooms"
