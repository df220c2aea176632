"""A run's folder: `last.pt` to go on from, `log.csv` and `log.json` to look at, `loss.svg` where matplotlib is.

Every file is written beside its place and moved there in one step, so a kill leaves the old one or the new one.
Checkpoints hold tensors and plain values only and are read back with `weights_only=True`.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from convsurgeon.base.errors import OutputError, RecoveryError
from convsurgeon.base.files import new_file

LAST = "last.pt"
COLUMNS = ("step", "epoch", "loss", "distance", "agreement", "lr", "seconds")
"""Of the log; `loss` is the mean since the last row, `distance` and `agreement` are those of the held-back images."""


def check_run(path: str | os.PathLike[str] | None, resume: bool) -> None:
    """Whether a run could begin or go on there; made to be asked before long work, too.

    Raises:
        OutputError: it holds a run already and `resume` is false.
        RecoveryError: `resume` without a folder.
    """
    if path is None:
        if resume:
            raise RecoveryError("recover: resume needs the folder of the run; pass run= (--run)")
    elif (Path(path) / LAST).exists() and not resume:
        raise OutputError(f"{path}: holds a run already; pass resume=True (--resume) or another folder")


class RunFolder:
    """Where a run keeps itself.

    Args:
        path: made if it is not there.

    Raises:
        OutputError: it cannot be made.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be made ({error.strerror}); choose another place") from error

    @property
    def _last(self) -> Path:
        return self.path / LAST

    def load(self, run: Mapping[str, Any]) -> dict[str, Any] | None:
        """The last checkpoint, if there is one; `run` is what it must have been started with.

        Raises:
            RecoveryError: it is damaged, or another run's.
        """
        if not self._last.exists():
            return None
        try:
            held = torch.load(self._last, map_location="cpu", weights_only=True)
            then = held["run"]
        except Exception as error:  # torch raises a dozen kinds here
            raise RecoveryError(
                f"{self._last}: is no checkpoint of a recovery ({type(error).__name__}); remove it and start anew"
            ) from error
        for name, value in run.items():
            if then.get(name) != value:
                raise RecoveryError(
                    f"{self._last}: was started with {name} {_short(then.get(name))}, now it is {_short(value)}; "
                    "resume with the same, or choose another folder"
                )
        return dict(held)

    def save(self, state: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes the checkpoint, and the log beside it.

        Raises:
            OutputError: the folder cannot be written, or is full.
        """
        with new_file(self._last, overwrite=True) as file:
            torch.save(dict(state), file)
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


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 60 else f"{text[:57]}..."
