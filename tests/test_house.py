"""The house: a room imports only from rooms above it, no room holds a circle, every room says what it is."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HOUSE = ROOT / "convsurgeon"
ROOMS = (
    *("base", "forms", "onnxnet", "graph", "planning", "calibration", "fit", "distill", "onnx", "int8", "timing"),
    *("runtime", "search", "report", "conversion", "recovery", "bundle", "cli"),
)
"""In the order of the data: each may import from those before it."""


@dataclass(frozen=True)
class Import:
    """One import of the package's own: where it stands, and the file that it names."""

    place: str
    source: str
    target: str


def _name(path: Path) -> str:
    parts = path.relative_to(HOUSE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


FILES = {_name(path): path for path in HOUSE.rglob("*.py")}


def _targets(node: ast.AST) -> Iterator[str]:
    """Files of the package that an import statement names."""
    if isinstance(node, ast.Import):
        named = [item.name for item in node.names]
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        named = [f"{base}.{item.name}" if _inside(f"{base}.{item.name}") in FILES else base for item in node.names]
    else:
        return
    yield from (_inside(name) for name in named if name.split(".")[0] == "convsurgeon")


def _inside(name: str) -> str:
    return name.removeprefix("convsurgeon").lstrip(".")


def _imports(source: str, text: str) -> Iterator[Import]:
    for node in ast.walk(ast.parse(text)):
        line = getattr(node, "lineno", 0)
        yield from (Import(f"convsurgeon/{source}: line {line}", source, target) for target in _targets(node))


IMPORTS = [found for name, path in FILES.items() for found in _imports(name, path.read_text(encoding="utf-8"))]


def _room(name: str) -> str | None:
    """The room of a file; None for the face and `__main__`, which stand before all of them."""
    return next((room for room in ROOMS if name == room or name.startswith(f"{room}.")), None)


def _upward(imports: list[Import]) -> list[str]:
    """Imports from a room below the file's own, or of the face, as lines to read."""
    wrong = []
    for one in imports:
        own, other = _room(one.source), _room(one.target)
        if own is not None and (other is None or ROOMS.index(other) > ROOMS.index(own)):
            wrong.append(f"{one.place} imports {one.target or 'the face'}, which is not above {own}")
    return wrong


def test_a_room_imports_only_from_rooms_above_it() -> None:
    assert not _upward(IMPORTS)


def test_no_room_holds_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for one in IMPORTS:
        graph.setdefault(one.source, set()).add(one.target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


def test_every_file_has_a_room_but_the_face() -> None:
    outside = {name for name in FILES if _room(name) is None}
    assert outside == {"", "__main__"}
    assert {_room(name) for name in FILES} - {None} == set(ROOMS)


def test_every_room_and_file_says_what_it_is() -> None:
    silent = [name for name, path in FILES.items() if not ast.get_docstring(ast.parse(path.read_text("utf-8")))]
    assert not silent


@pytest.mark.parametrize(
    "line",
    ["from convsurgeon.search import knapsack", "import convsurgeon.cli.main", "from convsurgeon import convert"],
)
def test_a_wrong_import_is_named(line: str) -> None:
    (wrong,) = _upward(list(_imports("fit.site", f"x = 1\n{line}\n")))
    assert wrong.startswith("convsurgeon/fit.site: line 2 imports ")


def test_tests_mirror_the_rooms() -> None:
    """A folder of tests bears the name of a room, or of what is tested across all of them."""
    across = {"benchmarks", "fuzz", "golden", "kept", "zoo", "__pycache__"}
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir()} - across
    rooms = set(ROOMS) - {"conversion", "recovery"}
    assert folders == rooms
