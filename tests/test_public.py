"""The public face: what is exported, and what importing it costs."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import convsurgeon as cs

ROOT = Path(__file__).resolve().parents[1]


def test_all_equals_what_is_public() -> None:
    public = {
        name for name, value in vars(cs).items() if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    public -= {"annotations", "import_module", "TYPE_CHECKING", "Any"}
    assert public | set(cs._LATE) == set(cs.__all__)
    assert list(cs.__all__) == sorted(cs.__all__)
    assert all(getattr(cs, name) is not None for name in cs.__all__)


def test_every_error_is_a_convsurgeon_error() -> None:
    errors = [getattr(cs, name) for name in cs.__all__ if name.endswith("Error")]
    assert len(errors) >= 10
    assert all(issubclass(error, cs.ConvSurgeonError) for error in errors)


def test_importing_loads_torch_and_nothing_heavier() -> None:
    code = (
        "import sys, convsurgeon; "
        "heavy = ('onnx', 'onnxruntime', 'onnxscript', 'jinja2', 'matplotlib', 'torchvision', 'timm', 'sklearn'); "
        "print([m for m in heavy if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_one_version() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == cs.__version__


def test_files_import_only_from_those_above_them() -> None:
    """No cycles: every module can be given a level above all it imports."""
    imports = {}
    for path in (ROOT / "convsurgeon").rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if path.name not in ("__init__.py", "__main__.py"):
            imports[name] = set(re.findall(r"^(?:from|import) (convsurgeon[\w.]*)", path.read_text(), re.MULTILINE))
    while imports:
        lowest = [name for name, needs in imports.items() if not needs & imports.keys()]
        assert lowest, f"a cycle among {sorted(imports)}"
        for name in lowest:
            del imports[name]
