"""The public face: what is exported, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import convsurgeon as cs

ROOT = Path(__file__).resolve().parents[1]


def test_all_equals_what_is_public() -> None:
    assert all(getattr(cs, name) is not None for name in cs.__all__)
    assert set(cs.__all__) <= set(dir(cs))
    with pytest.raises(AttributeError, match="covert"):
        _ = cs.covert


def test_a_name_that_is_gone_names_the_new_one() -> None:
    for name, new in cs._GONE.items():
        assert name not in cs.__all__
        with pytest.raises(AttributeError) as caught:
            getattr(cs, name)
        assert new in str(caught.value)


def test_no_package_bears_a_public_name() -> None:
    """Importing a package would put it in the name's place."""
    packages = {path.stem for path in Path(cs.__file__).parent.iterdir() if path.name[0] != "_"}
    assert packages & set(cs.__all__) == {"onnx", "timing"}  # the namespaces


def test_every_error_is_a_convsurgeon_error() -> None:
    errors = [value for name, value in vars(cs.errors).items() if name.endswith("Error")]
    assert len(errors) >= 10
    assert all(issubclass(error, cs.ConvSurgeonError) for error in errors)


@pytest.mark.parametrize("space", ["errors", "onnx", "select", "timing"])
def test_a_namespace_holds_what_it_names(space: str) -> None:
    code = f"import convsurgeon as cs; m = cs.{space}; [getattr(m, name) for name in getattr(m, '__all__', ())]"
    subprocess.run([sys.executable, "-c", code], check=True)  # a fresh process: nothing was imported before


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
