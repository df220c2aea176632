"""A run's folder: `last.pt` to go on from and `log.csv` to look at, each replaced in one step."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from convsurgeon.base.errors import RecoveryError, WriteError, describe, expect, reason
from convsurgeon.base.files import new_file
from convsurgeon.distill.distiller import Distiller

LAST = "last.pt"
VERSION = 1


def check_run(path: str | os.PathLike[str] | None, resume: bool) -> None:
    """Refuse a run that could neither begin nor go on, before any work is done."""
    expect(path, (str, os.PathLike, type(None)), "run: expected the path of a folder", RecoveryError)
    if path is None and resume:
        raise RecoveryError("recover: resume needs the folder of the run; pass run= (--run)")
    if path is not None and (Path(path) / LAST).exists() and not resume:
        raise WriteError(f"{path}: holds a run already; pass resume=True (--resume) or another folder")


class RunFolder:
    """The folder that a run saves itself in; a checkpoint of a run with other settings is refused."""

    def __init__(self, path: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
        self.path, self.settings = Path(path), dict(settings)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:  # ValueError: a NUL in it
            raise WriteError(f"{self.path}: cannot be made ({reason(error)}); choose another place") from error

    def load(self) -> dict[str, Any] | None:
        """Return the last checkpoint; None where there is none."""
        if not (self.path / LAST).exists():
            return None
        try:
            held: dict[str, Any] = torch.load(self.path / LAST, map_location="cpu", weights_only=True)
            version, settings = held["version"], dict(held["settings"])
            held["lr"], held["trials"] = float(held["lr"]), [(float(lr), float(error)) for lr, error in held["trials"]]
        except Exception as error:  # torch and zipfile raise a dozen kinds here
            raise self._unreadable(error) from error
        if version != VERSION:
            raise RecoveryError(f"{self.path / LAST}: has version {version}, this is {VERSION}; start anew")
        for name, value in self.settings.items():
            if settings.get(name) != value:
                raise RecoveryError(
                    f"{self.path / LAST}: was started with {name} {settings.get(name)}, now it is {value}; "
                    "resume with the same, or choose another folder"
                )
        return held

    def restore(self, distiller: Distiller, held: Mapping[str, Any]) -> str:
        """Put a checkpoint's state into a run that it fits; return why that run ended, if it did."""
        try:
            distiller.load_state(held)
            return str(held["ended"])
        except Exception as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> RecoveryError:
        return RecoveryError(
            f"{self.path / LAST}: is not a checkpoint of a recovery ({describe(error)}); remove it and start anew"
        )

    def save(self, state: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the checkpoint, and the log beside it; raise a WriteError where the folder is full."""
        held, text = io.BytesIO(), io.StringIO()  # torch.save into a file hides the reason where a disk is full
        torch.save({"version": VERSION, "settings": self.settings, **state}, held)
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        for name, data in (("log.csv", text.getvalue().encode()), (LAST, held.getvalue())):
            with new_file(self.path / name, overwrite=True) as file:
                file.write_bytes(data)
