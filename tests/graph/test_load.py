"""Models from Python files, and weights from files: loaded, or refused with what is wrong; nothing is left behind."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from convsurgeon.base.errors import LoadError
from convsurgeon.graph.load import load_model, load_weights


@pytest.mark.parametrize("end", ["raise ValueError('half')", "raise SystemExit(1)"])
def test_a_file_that_fails_leaves_no_module_behind(end: str, tmp_path: Path) -> None:
    place = tmp_path / "half_run_model.py"
    place.write_text(f"import torch\ndef make():\n    return torch.nn.Linear(2, 2)\n{end}\n")
    before = set(sys.modules)
    with pytest.raises(LoadError, match=r"half_run_model\.py"):
        load_model(f"{place}:make")
    assert set(sys.modules) == before
    place.write_text("import torch\ndef make():\n    return torch.nn.Linear(2, 2)\n")
    assert isinstance(load_model(f"{place}:make"), nn.Linear)


def test_weights_of_another_model_are_listed(tmp_path: Path) -> None:
    place = tmp_path / "weights.safetensors"
    save_file({"weight": torch.zeros(3, 2), "extra": torch.zeros(1)}, place)
    with pytest.raises(LoadError, match=r"1 missing: bias; 1 unexpected: extra; 1 of another shape: weight"):
        load_weights(nn.Linear(2, 2), place)
    save_file({"weight": torch.full((2, 2), torch.nan), "bias": torch.zeros(2)}, place)
    with pytest.raises(LoadError, match="weight"):
        load_weights(nn.Linear(2, 2), place)


@pytest.mark.parametrize("wrap", ["state_dict", "model"])
def test_wrappers_and_prefixes_are_taken_off(wrap: str, tmp_path: Path) -> None:
    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({wrap: state, "epoch": 3}, tmp_path / "weights.pt")
    load_weights(other, tmp_path / "weights.pt")
    assert torch.equal(model.weight, other.weight)


def test_files_that_hold_programs_are_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "pickled.pt")
    with pytest.raises(LoadError, match="pickled"):
        load_weights(nn.Linear(2, 2), tmp_path / "pickled.pt")
    (tmp_path / "empty.pt").touch()
    with pytest.raises(LoadError, match=r"empty\.pt"):
        load_weights(nn.Linear(2, 2), tmp_path / "empty.pt")
