"""Paths on the command line are looked at before torch loads, which takes seconds."""

from __future__ import annotations

import argparse
from pathlib import Path

from convsurgeon.base.errors import LoadError
from convsurgeon.base.files import check_file, check_folder
from convsurgeon.cli.options import NONE

_OPTIONS = {"weights": "--weights", "images": "the images", "plan": "--plan", "device": "--device", "bundle": "--from"}
_MODEL = "package.module:factory, file.py:factory, torchvision:NAME, timm:NAME or an ONNX file; weights go to --weights"
_FILES = {"plan", "sweep"}
"""Commands that write a file; the others write a folder."""


def check_paths(options: argparse.Namespace) -> None:
    """Refuse paths that cannot be read or written.

    Raises:
        LoadError: nothing lies at a path.
        WriteError: something lies where a command is to write, or it cannot write there.
    """
    _check_working_directory()
    given = vars(options)
    for name, words in _OPTIONS.items():
        path = given.get(name)
        if path and (name, path) != ("images", NONE) and not Path(path).exists():
            raise LoadError(f"{path[:200]}: does not exist; check the path of {words}")
    for file in given.get("files", ()):
        _check_file(file)
    for name, words in (("model", _MODEL), ("metric", "file.py:function or package.module:function")):
        if given.get(name):
            _check_code(given[name], words, may_be_file=name == "model")
    if given.get("out") and not options.force:
        (check_file if options.command in _FILES else check_folder)(options.out, False)


def _check_working_directory() -> None:
    """Refuse one that was deleted: there the mathematics library of torch ends the process."""
    try:
        Path.cwd()
    except OSError:
        raise LoadError("the working directory was deleted; change to one that exists") from None


def _check_code(name: str, words: str, may_be_file: bool) -> None:
    """Refuse what names neither a Python file's function nor an ONNX file."""
    is_onnx = may_be_file and name.lower().endswith(".onnx")
    file, colon, _ = (name, ":", "") if is_onnx else name.rpartition(":")
    if not colon:
        raise LoadError(f"{name[:200]}: expected {words}")
    if is_onnx or file.endswith(".py"):
        _check_file(file)


def _check_file(file: str) -> None:
    if not Path(file).is_file():
        raise LoadError(f"{file[:200]}: no such file; check its path")
