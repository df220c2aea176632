"""A package imports only from those before it, none holds a circle, and every file says what it is."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "convsurgeon"
PACKAGES = (
    *("base", "forms", "onnxnet", "graph", "planning", "calibration", "fit", "distill", "onnx", "int8", "timing"),
    *("runtime", "search", "report", "result", "conversion", "recovery", "bundle", "cli"),
)
"""In the order of the data: each may import from those before it."""


@dataclass(frozen=True)
class Import:
    """One import of the package's own: where it stands, and the file that it names."""

    place: str
    source: str
    target: str


def _name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


FILES = {_name(path): path for path in PACKAGE.rglob("*.py")}


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


def _package(name: str) -> str | None:
    """The package of a file; None for the public face and `__main__`, which stand before all of them."""
    return next((package for package in PACKAGES if name == package or name.startswith(f"{package}.")), None)


def _upward(imports: list[Import]) -> list[str]:
    """Imports from a package below the file's own, or of the public face, as lines to read."""
    wrong = []
    for one in imports:
        own, other = _package(one.source), _package(one.target)
        if own is not None and (other is None or PACKAGES.index(other) > PACKAGES.index(own)):
            wrong.append(f"{one.place} imports {one.target or 'the public face'}, which is not above {own}")
    return wrong


def test_a_package_imports_only_from_those_before_it() -> None:
    assert not _upward(IMPORTS)


def test_no_package_holds_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for one in IMPORTS:
        graph.setdefault(one.source, set()).add(one.target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


def test_every_file_has_a_package_but_the_face() -> None:
    outside = {name for name in FILES if _package(name) is None}
    assert outside == {"", "__main__"}
    assert {_package(name) for name in FILES} - {None} == set(PACKAGES)


def test_every_package_and_file_says_what_it_is() -> None:
    silent = [name for name, path in FILES.items() if not ast.get_docstring(ast.parse(path.read_text("utf-8")))]
    assert not silent


@pytest.mark.parametrize(
    "line",
    ["from convsurgeon.search import knapsack", "import convsurgeon.cli.main", "from convsurgeon import convert"],
)
def test_a_wrong_import_is_named(line: str) -> None:
    (wrong,) = _upward(list(_imports("fit.site", f"x = 1\n{line}\n")))
    assert wrong.startswith("convsurgeon/fit.site: line 2 imports ")


def test_tests_mirror_the_packages() -> None:
    """A folder of tests bears the name of a package, or of what is tested across all of them."""
    across = {"benchmarks", "fuzz", "golden", "kept", "zoo", "__pycache__"}
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir()} - across
    packages = set(PACKAGES) - {"result", "conversion", "recovery"}
    assert folders == packages
