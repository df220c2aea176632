"""How near the outputs of an ONNX file are to those of another one, on the same inputs and in the optimised runtime."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch
from torch import Tensor

from convsurgeon.graph.output_error import OutputError
from convsurgeon.int8.activations import add_energies, ratio_db
from convsurgeon.int8.feeds import opened_sizes
from convsurgeon.onnxnet import proto
from convsurgeon.onnxnet.session import Feed, open_session, session_options


@dataclass(frozen=True)
class Agreement:
    """One file against the one it is judged by."""

    name: str
    sqnr_db: float
    """Of all outputs, over all inputs; -inf where they have other sizes, as where boxes are picked."""
    top1: float | None
    """Share of rows whose largest output is the same; None where the output is not one row of classes per image."""
    rows: int
    """Images that were looked at."""
    error: float
    """Of the outputs, as a conversion defines it (see `graph.output_error`)."""


def agreement(reference: Path, other: Path, feeds: Sequence[Feed]) -> Agreement:
    """Compares two files that take the same inputs; images may have other sizes than the files are for.

    Raises:
        LatencyError: One of them cannot be loaded.
    """
    energy, same, ranked, rows = [0.0, 0.0], 0, 0, 0
    error = OutputError()
    sessions: list[ort.InferenceSession] = [_session(path, feeds) for path in (reference, other)]
    for feed in feeds:
        wanted, got = (session.run(None, feed) for session in sessions)
        if any(one.shape != two.shape for one, two in zip(wanted, got, strict=True)):
            return Agreement(
                other.name, -math.inf, None, sum(len(next(iter(feed.values()))) for feed in feeds), math.inf
            )
        for one, two in zip(wanted, got, strict=True):
            add_energies(energy, one, two)
        error.add(_numbers(wanted), _numbers(got))
        rows += len(wanted[0]) if wanted[0].ndim else 1
        if len(wanted) == 1 and wanted[0].ndim == 2 and wanted[0].shape[1] > 1:
            same += int(np.sum(wanted[0].argmax(1) == got[0].argmax(1)))
            ranked += len(wanted[0])
    top1 = same / ranked if ranked else None
    return Agreement(other.name, ratio_db(*energy), top1, rows, error.value)


def _numbers(values: Sequence[npt.NDArray[Any]]) -> list[Tensor]:
    """Return outputs as floating-point tensors, class numbers and masks too."""
    return [torch.from_numpy(value.astype(np.float64)) for value in values]


def _session(path: Path, feeds: Sequence[Feed]) -> ort.InferenceSession:
    """The file as it is, or with its sizes opened where the images have others."""
    model = onnx.load(path)
    shapes = dict(proto.signature(model.graph.input))
    fits = all(_takes(shapes[name], value.shape) for feed in feeds for name, value in feed.items() if name in shapes)
    if fits:
        return open_session(path, session_options(1, "all"))
    return open_session(opened_sizes(model), session_options(1, "all"))


def _takes(wanted: Sequence[int | str], given: Sequence[int]) -> bool:
    return len(wanted) == len(given) and all(
        isinstance(one, str) or one == size for one, size in zip(wanted, given, strict=True)
    )
