"""How near the outputs of an ONNX file are to those of another one, on the same inputs and in the optimised runtime."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

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
    """Squared error of all outputs over the variance of the reference's: what a conversion calls its error."""


def agreement(reference: Path, other: Path, feeds: Sequence[Feed]) -> Agreement:
    """Compares two files that take the same inputs; images may have other sizes than the files are for.

    Raises:
        LatencyError: One of them cannot be loaded.
    """
    energy, same, ranked, rows = [0.0, 0.0], 0, 0, 0
    means: dict[int, list[float]] = {}
    sessions: list[ort.InferenceSession] = [_session(path, feeds) for path in (reference, other)]
    for feed in feeds:
        wanted, got = (session.run(None, feed) for session in sessions)
        for number, (one, two) in enumerate(zip(wanted, got, strict=True)):
            if one.shape != two.shape:
                return Agreement(
                    other.name, -math.inf, None, sum(len(next(iter(feed.values()))) for feed in feeds), math.inf
                )
            add_energies(energy, one, two)
            sums = means.setdefault(number, [0.0, 0.0])
            sums[0], sums[1] = sums[0] + float(np.sum(one, dtype=np.float64)), sums[1] + one.size
        rows += len(wanted[0]) if wanted[0].ndim else 1
        if len(wanted) == 1 and wanted[0].ndim == 2 and wanted[0].shape[1] > 1:
            same += int(np.sum(wanted[0].argmax(1) == got[0].argmax(1)))
            ranked += len(wanted[0])
    variance = energy[0] - sum(total**2 / count for total, count in means.values() if count)
    error = energy[1] / variance if variance > 0 else (math.inf if energy[1] else 0.0)
    top1 = same / ranked if ranked else None
    return Agreement(other.name, ratio_db(*energy), top1, rows, error if math.isfinite(error) else math.inf)


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
