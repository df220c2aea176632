"""A run's folder: `last.pt` to go on from, `log.csv` and `log.json` to look at, `loss.svg` where matplotlib is.

Every file is written beside its place and moved there in one step, so a kill leaves the old one or the new one.
Checkpoints hold tensors and plain values only and are read back with `weights_only=True`.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import math
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convsurgeon.base import processes as world
from convsurgeon.base.errors import RecoveryError, WriteError, describe, reason
from convsurgeon.base.files import locked, new_file

LAST = "last.pt"
COLUMNS = ("step", "epoch", "loss", "distance", "agreement", "lr", "seconds")
"""Of the log; `loss` is the mean since the last row, `distance` and `agreement` are those of the held-back images."""


def check_run(path: str | os.PathLike[str] | None, resume: bool) -> None:
    """Whether a run could begin or go on there; made to be asked before long work, too.

    Raises:
        WriteError: it holds a run already and `resume` is false.
        RecoveryError: `resume` without a folder.
    """
    if path is None:
        if resume:
            raise RecoveryError("recover: resume needs the folder of the run; pass run= (--run)")
    elif (Path(path) / LAST).exists() and not resume:
        raise WriteError(f"{path}: holds a run already; pass resume=True (--resume) or another folder")


class RunFolder:
    """Where a run keeps itself.

    Args:
        path: made if it is not there.

    Raises:
        WriteError: it cannot be made.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:  # a NUL in it
            raise WriteError(f"{self.path}: cannot be made ({reason(error)}); choose another place") from error

    @property
    def _last(self) -> Path:
        return self.path / LAST

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Keeps other processes out, for as long as this one is at work.

        Raises:
            WriteError: another one is at work in it.
        """
        if world.rank():  # the first process speaks for all of a run
            yield
            return
        with locked(self.path) as mine:
            if not mine:
                raise WriteError(f"{self.path}: another recovery is at work in it; wait, or choose another folder")
            yield

    def load(self, run: Mapping[str, Any]) -> dict[str, Any] | None:
        """The last checkpoint, if there is one; `run` is what it must have been started with.

        Raises:
            RecoveryError: it is damaged, or another run's.
        """
        if not self._last.exists():
            return None
        try:
            _undamaged(self._last)
            held = _as_of_now(torch.load(self._last, map_location="cpu", weights_only=True))
            _look_at(held)
            then = held["run"]
        except Exception as error:  # torch and zipfile raise a dozen kinds here
            raise self.refused(error) from error
        for name, value in run.items():
            if not _equal(then.get(name), value):
                raise RecoveryError(
                    f"{self._last}: was started with {name} {_short(then.get(name))}, now it is {_short(value)}; "
                    "resume with the same, or choose another folder"
                )
        return dict(held)

    def refused(self, error: Exception) -> RecoveryError:
        """What to say of a checkpoint that cannot be taken up."""
        return RecoveryError(
            f"{self._last}: is no checkpoint of a recovery ({describe(error)}); remove it and start anew"
        )

    def save(self, state: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes the checkpoint, and the log beside it.

        Raises:
            WriteError: the folder cannot be written, or is full.
        """
        with new_file(self._last, overwrite=True) as file:
            held = io.BytesIO()  # torch.save into a file says nothing of a full disk that could be understood
            torch.save(dict(state), held)
            file.write_bytes(held.getbuffer())
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self._write("log.csv", text.getvalue())
        self._write("log.json", json.dumps(list(rows), indent=1) + "\n")

    def draw(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """`loss.svg`: loss, held-back distance and learning rate over the steps; nothing without matplotlib."""
        if len(rows) < 2 or importlib.util.find_spec("matplotlib") is None:
            return
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4), layout="constrained")
        losses = figure.subplots()
        rates = losses.twinx()
        trained = [row for row in rows if row["loss"] is not None]
        losses.plot([row["step"] for row in trained], [row["loss"] for row in trained], label="training loss")
        steps = [row["step"] for row in rows]
        losses.plot(steps, [row["distance"] for row in rows], "o-", markersize=3, label="distance, held-back images")
        rates.plot(steps, [row["lr"] for row in rows], ":", color="grey", label="learning rate")
        losses.set(xlabel="step", ylabel="distance to the original", ylim=(0, None))
        rates.set(ylabel="learning rate", ylim=(0, None))
        figure.legend(loc="outside upper center", ncols=3, frameon=False)
        with new_file(self.path / "loss.svg", overwrite=True) as file:
            figure.savefig(file, format="svg", metadata={"Date": None})

    def _write(self, name: str, text: str) -> None:
        with new_file(self.path / name, overwrite=True) as file:
            file.write_text(text, encoding="utf-8")


def _as_of_now(held: Any) -> Any:
    """A checkpoint of a version without what has come since: one rate all the way, in float."""
    if isinstance(held, dict) and isinstance(held.get("run"), dict) and "precision" not in held["run"]:
        run = {**held["run"], "precision": "fp32"}
        return {"since": 0, "highest": held.get("lr"), **held, "run": run}
    return held


def _equal(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except (RuntimeError, ValueError):  # a tensor stands where a setting should
        return False


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 60 else f"{text[:57]}..."


def _undamaged(path: Path) -> None:
    """Compares the archive with its checksums, which torch does not look at.

    Raises:
        ValueError: A bit in it is another, or it would grow when it is read.
        BadZipFile: It is no archive.
    """
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("it is compressed, which torch.save does not do")
        if wrong := archive.testzip():
            raise ValueError(f"{wrong} was damaged")


def _look_at(held: Any) -> None:
    """Whether a checkpoint has all its parts, each of its kind; those of the optimiser are told by torch.

    Raises:
        ValueError: One has not.
    """
    log = _part(held, "log", dict)
    for owner, name, kind in _PARTS:
        value = _part(log if owner else held, name, kind)
        if (isinstance(value, float) and not math.isfinite(value)) or (name in _COUNTS and value < 0):
            raise ValueError(f"{name} is {value}")
    if not all(isinstance(row, dict) and tuple(row) == COLUMNS and _plain(row.values()) for row in log["rows"]):
        raise ValueError("rows of the log have other columns")
    if not log["rows"] or not all(isinstance(value, Tensor) for value in log["weights"].values()):
        raise ValueError("the log has no rows, or weights that are no tensors")
    if not all(len(log[name]) == 2 and type(log[name][0]) in (int, float) for name in ("start", "best")):
        raise ValueError("a score is no pair of numbers")
    if not all(isinstance(trial, list) and len(trial) == 2 for trial in held["trials"]):
        raise ValueError("a trial is no pair of numbers")
    for values in (*held["trials"], log["losses"], log["start"], log["best"]):
        if not _plain(values):
            raise ValueError("a figure is no number")


def _part(holder: Any, name: str, kind: type) -> Any:
    value = holder[name] if isinstance(holder, dict) and name in holder else None
    kinds = {float: (float, int), int: (int,)}.get(kind, (kind,))
    if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{name} is {'missing' if value is None else f'a {type(value).__name__}'}")
    return value


def _plain(values: Iterable[Any]) -> bool:
    return all(value is None or type(value) in (int, float) for value in values)


_COUNTS = ("step", "best_step", "since", "seconds")
_PARTS = (
    *((False, name, dict) for name in ("run", "model", "optimizer", "scheduler")),
    *(
        (False, "step", int),
        (False, "since", int),
        (False, "highest", float),
        (False, "lr", float),
        (False, "ended", str),
        (False, "trials", list),
    ),
    *((True, name, list) for name in ("start", "best", "rows", "losses")),
    *((True, "weights", dict), (True, "best_step", int), (True, "seconds", float)),
)
"""Of a checkpoint: whether it is in its log, the name, and the kind."""
