"""The folder of a run: a checkpoint that was damaged is noticed, one process at a time, a full disk is a line."""

from __future__ import annotations

import os
import random
import resource
import subprocess
import sys
import zipfile
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
    lambda held: held.pop("model"),
    lambda held: held["model"].pop("head.weight"),
    lambda held: held.update(step="five"),
    lambda held: held.update(step=-1),
    lambda held: held.update(lr=float("nan")),
    lambda held: held.update(trials=[1.0]),
    lambda held: held.update(ended=None),
    lambda held: held.update(optimizer={}),
    lambda held: held.update(scheduler={"base_lrs": 3, "lr_lambdas": []}),
    lambda held: held.update(log=[]),
    lambda held: held["log"].pop("weights"),
    lambda held: held["log"]["weights"].pop("head.weight"),
    lambda held: held["log"]["weights"].update({"head.weight": torch.zeros(2)}),
    lambda held: held["log"].update(best=[1.0]),
    lambda held: held["log"].update(start=["a", None]),
    lambda held: held["log"].update(rows=[]),
    lambda held: held["log"]["rows"][0].pop("loss"),
    lambda held: held["log"]["rows"][0].update(distance="near"),
    lambda held: held["log"].update(losses=["a"]),
    lambda held: held.update(since=None),
    lambda held: held.update(highest="much"),
    lambda held: held.update(run=[]),
]


@pytest.mark.parametrize("change", WRONG)
def test_wrong_parts_are_a_line(
    change: Callable[[dict[str, Any]], object], converted: cs.Result, checkpoint: bytes, tmp_path: Path
) -> None:
    (tmp_path / "right.pt").write_bytes(checkpoint)
    held = torch.load(tmp_path / "right.pt", weights_only=True)
    change(held)
    torch.save(held, tmp_path / "wrong.pt")
    with pytest.raises(cs.RecoveryError, match=r"last\.pt: is no checkpoint of a recovery .*start anew") as told:
        _resumed(converted, tmp_path / "run", (tmp_path / "wrong.pt").read_bytes())
    assert "\n" not in str(told.value)


def test_every_bit_that_counts_is_noticed(checkpoint: bytes, tmp_path: Path) -> None:
    """A flip is told, or it changes nothing that is read: a time in the archive, a byte that fills up."""
    (tmp_path / "last.pt").write_bytes(checkpoint)
    folder, chance = RunFolder(tmp_path), random.Random(0)
    right = folder.load({})
    noticed = 0
    for _ in range(300):
        at = chance.randrange(len(checkpoint))
        changed = bytearray(checkpoint)
        changed[at] ^= 1 << chance.randrange(8)
        (tmp_path / "last.pt").write_bytes(changed)
        try:
            held = folder.load({})
        except cs.RecoveryError:
            noticed += 1
        else:
            assert _equal(held, right), at
    assert noticed > 100


def _equal(one: Any, two: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(_equal(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(_equal, one, two))
    return bool(one == two)


def test_a_deflated_checkpoint_is_not_opened(converted: cs.Result, checkpoint: bytes, tmp_path: Path) -> None:
    (tmp_path / "right.pt").write_bytes(checkpoint)
    with (
        zipfile.ZipFile(tmp_path / "right.pt") as right,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for entry in right.infolist():
            bomb.writestr(entry.filename, right.read(entry))
    with pytest.raises(cs.RecoveryError, match=r"it is compressed, which torch\.save does not do"):
        _resumed(converted, tmp_path / "run", (tmp_path / "bomb.pt").read_bytes())


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
    folder = RunFolder(tmp_path / "run")
    with (
        full_disk(4096),
        pytest.raises(cs.WriteError, match=r"last\.pt: cannot be written \(File too large\); choose another place"),
    ):
        folder.save({"weights": torch.zeros(10_000)}, [])
    assert (tmp_path / "run" / "last.pt").read_bytes() == checkpoint
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["last.pt"]
    with full_disk(4096), pytest.raises(cs.WriteError, match=r"last\.pt: cannot be written"):
        _recover(converted, run=tmp_path / "other", epochs=1)


AT_WORK = """
import sys
from convsurgeon.distill.checkpoint import RunFolder
with RunFolder(sys.argv[1]).owned():
    print("at work", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.skipif(os.name != "posix", reason="locks are posix's")
def test_the_second_process_in_a_folder_is_told(converted: cs.Result, tmp_path: Path) -> None:
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    with subprocess.Popen([sys.executable, "-c", AT_WORK, str(tmp_path / "run")], **pipes) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "at work\n"
        with pytest.raises(cs.WriteError, match="run: another recovery is at work in it; wait, or choose another"):
            _recover(converted, run=tmp_path / "run", resume=True)
        other.communicate("\n")
    assert _recover(converted, run=tmp_path / "run", resume=True, epochs=1).changes  # it is gone: nothing is in the way


def test_a_folder_with_a_nul_in_its_name_is_a_line() -> None:
    with pytest.raises(cs.WriteError, match=r"cannot be made \(embedded null byte\); choose another place"):
        RunFolder("a\0b")
