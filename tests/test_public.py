"""The public face: what is exported, and what importing it costs."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import convsurgeon as cs

ROOT = Path(__file__).resolve().parents[1]


def test_all_equals_what_is_public() -> None:
    assert sorted(cs.__all__) == sorted(cs._HOME)
    assert all(getattr(cs, name) is not None for name in cs.__all__)
    assert set(cs.__all__) <= set(dir(cs))
    loaded = {name for name, value in vars(cs).items() if name[0] != "_" and not isinstance(value, ModuleType)}
    assert loaded - {"annotations", "import_module", "TYPE_CHECKING", "Any"} == set(cs.__all__)
    with pytest.raises(AttributeError, match="module 'convsurgeon' has no attribute 'covert'"):
        _ = cs.covert


def test_types_are_told_of_the_very_names_that_load() -> None:
    """What a type checker reads, and what happens, are two lists of the same."""
    (block,) = (node for node in ast.parse(Path(cs.__file__).read_text("utf-8")).body if isinstance(node, ast.If))
    told = {(f"{item.module}", name.name) for item in block.body for name in item.names}  # type: ignore[attr-defined]
    told -= {(f"convsurgeon.{path}".rpartition(".")[0], name) for name, path in cs._NAMESPACES.items()}
    assert told == {(f"convsurgeon.{home}", name) for home, names in cs._HOMES.items() for name in names}


def test_no_room_bears_a_public_name() -> None:
    """Importing a room would put it in the name's place."""
    rooms = {path.stem for path in Path(cs.__file__).parent.iterdir() if path.name[0] != "_"}
    assert not rooms & set(cs.__all__)


def test_every_error_is_a_convsurgeon_error() -> None:
    errors = [getattr(cs, name) for name in cs.__all__ if name.endswith("Error")]
    assert len(errors) >= 10
    assert all(issubclass(error, cs.ConvSurgeonError) for error in errors)


def test_importing_loads_nothing_and_converting_loads_torch_and_nothing_heavier() -> None:
    code = (
        "import sys, convsurgeon; "
        "first = [m for m in sys.modules if m.startswith('convsurgeon.')]; "
        "convsurgeon.convert, convsurgeon.recover, convsurgeon.Budget; "
        "heavy = ('onnx', 'onnxruntime', 'onnxscript', 'jinja2', 'matplotlib', 'torchvision', 'timm', 'sklearn'); "
        "print(first, [m for m in heavy if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[] []"


def test_one_version() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == cs.__version__
