"""The folder of a run: a checkpoint that was damaged is noticed, one process at a time, a full disk is a line."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import convsurgeon as cs
from convsurgeon.distill.checkpoint import RunFolder
from tests import nets
from tests.distill.test_recover import _converted, _recover

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def converted() -> cs.Result:
    return _converted(nets.Plain())


@pytest.fixture(scope="module")
def checkpoint(converted: cs.Result, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    run = tmp_path_factory.mktemp("run") / "run"
    _recover(converted, run=run)
    return (run / "last.pt").read_bytes()


def _resumed(converted: cs.Result, run: Path, data: bytes) -> cs.Result:
    run.mkdir(exist_ok=True)
    (run / "last.pt").write_bytes(data)
    return _recover(converted, run=run, resume=True)


WRONG: list[Callable[[dict[str, Any]], object]] = [
    lambda held: held.pop("student"),
    lambda held: held["student"].pop("head.weight"),
    lambda held: held.update(optimizer={}),
    lambda held: held.pop("settings"),
    lambda held: held.update(best=[1.0] * 9),
    lambda held: held.pop("weights"),
    lambda held: held.pop("ended"),
]


@pytest.mark.parametrize("change", WRONG)
def test_wrong_parts_are_a_line(
    change: Callable[[dict[str, Any]], object], converted: cs.Result, checkpoint: bytes, tmp_path: Path
) -> None:
    (tmp_path / "right.pt").write_bytes(checkpoint)
    held = torch.load(tmp_path / "right.pt", weights_only=True)
    change(held)
    torch.save(held, tmp_path / "wrong.pt")
    with pytest.raises(cs.errors.RecoveryError, match=r"last\.pt: .*start anew") as told:
        _resumed(converted, tmp_path / "run", (tmp_path / "wrong.pt").read_bytes())
    assert "\n" not in str(told.value)


def test_another_version_and_a_broken_file_are_a_line(converted: cs.Result, checkpoint: bytes, tmp_path: Path) -> None:
    (tmp_path / "right.pt").write_bytes(checkpoint)
    held = torch.load(tmp_path / "right.pt", weights_only=True)
    torch.save({**held, "version": 0}, tmp_path / "old.pt")
    for data in ((tmp_path / "old.pt").read_bytes(), checkpoint[: len(checkpoint) // 2], b"no", b""):
        with pytest.raises(cs.errors.RecoveryError, match=r"last\.pt: .*start anew"):
            _resumed(converted, tmp_path / "run", data)


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """No file of this process grows beyond so many bytes, which is as near to a full disk as a test gets."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_a_line_and_the_old_checkpoint_stays(
    converted: cs.Result, checkpoint: bytes, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.pt").write_bytes(checkpoint)
    folder = RunFolder(tmp_path / "run", {})
    with (
        full_disk(4096),
        pytest.raises(cs.errors.WriteError, match=r"last\.pt"),
    ):
        folder.save({"weights": torch.zeros(10_000)}, [{"step": 0}])
    assert (tmp_path / "run" / "last.pt").read_bytes() == checkpoint
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"last.pt", "log.csv"}
    with full_disk(4096), pytest.raises(cs.errors.WriteError, match=r"last\.pt: cannot be written"):
        _recover(converted, run=tmp_path / "other", epochs=1)


def test_a_folder_with_a_nul_in_its_name_is_a_line() -> None:
    with pytest.raises(cs.errors.WriteError, match=r"cannot be made \(embedded null byte\); choose another place"):
        RunFolder("a\0b", {})
