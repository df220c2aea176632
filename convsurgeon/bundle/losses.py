"""What every file of a bundle loses, by the measure that its conversion was judged by: the user's metric, or the error.

A file's loss is that of the file: what the conversion and the quantisation did together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import onnx

from convsurgeon.base.errors import describe
from convsurgeon.int8.compare import Agreement
from convsurgeon.int8.module import Int8Module
from convsurgeon.int8.quantize import Quantized
from convsurgeon.report.bundle import CONVERTED, DENSE_INT8, INT8, ORIGINAL
from convsurgeon.result import Result
from convsurgeon.search.goal import Within

_FLOAT = (ORIGINAL, CONVERTED)

RUINED = 0.25
"""Loss from which on a converted network is not taken for what its user wants: an error, or a share of the metric."""


def known_values(result: Result) -> dict[str, float]:
    """Return what the user's metric gives for the float files, which were asked in torch; empty without a metric."""
    within = result.within
    if within is None or within.metric is None or within.before is None:
        return {
            name: value for _, *both in result.report.metrics[-1:] for name, value in zip(_FLOAT, both, strict=True)
        }
    after = {name: now for name, _, now in result.report.metrics}
    known = {ORIGINAL: within.before}
    return known if result.precision == "int8" and result.searched else known | {CONVERTED: after[within.name]}


def doubts(result: Result, values: Mapping[str, float]) -> dict[str, float]:
    """Return the standard errors of the files' metric against the original's, where each image has a value."""
    within = result.within
    found = {
        name: None if within is None else within.doubt(value) for name, value in values.items() if name != ORIGINAL
    }
    return {name: doubt for name, doubt in found.items() if doubt is not None}


def ask_metric(result: Result, files: Sequence[Quantized]) -> tuple[dict[str, float], tuple[str, ...]]:
    """Return what the user's metric gives for int8 files, nan where it fails on one, and notes on those."""
    within = result.within
    if within is None or within.metric is None:
        return {}, ()
    values, notes = {}, []
    for file in files:
        name = file.path.name
        exact = result.original if name == DENSE_INT8 else result.model
        try:
            values[name] = within.ask(Int8Module(onnx.load(file.path), exact))
        except Exception as error:  # the user's own code, on a network that runs outside torch
            values[name] = math.nan
            notes.append(f"{name} is not recommended: {within.name} cannot be measured on it ({describe(error)}).")
    return values, tuple(notes)


def losses(within: Within, agreement: Sequence[Agreement], values: Mapping[str, float]) -> dict[str, float]:
    """Return what every file loses in the unit of the tolerance; infinite where that is not known."""
    if within.metric is None:
        return {one.name: within.value(one.error, one.lost) for one in agreement}
    lost = {one.name: within.lost(values.get(one.name, math.nan)) for one in agreement}
    return {name: math.inf if math.isnan(value) else value for name, value in lost.items()}


def allowed_loss(lost: Mapping[str, float], result: Result, within: Within) -> float:
    """Return the most that a recommended file may lose.

    That is the tolerance of the search. Where a form or a cost was asked for, it comes on top of what that cost.
    """
    if result.searched:
        return within.most
    asked_for = lost.get(CONVERTED if result.precision == "fp32" else INT8, 0.0)
    ruin = RUINED * (1.0 if within.metric is None else abs(within.before or 0.0))
    return within.most + max(asked_for if asked_for <= ruin else 0.0, 0.0)


def chosen_file(lost: Mapping[str, float], result: Result, within: Within) -> str:
    """Return the file that a search found good enough on its own images, which are more; empty without one.

    A metric is the same for everybody, and needs no such exception.
    """
    name = CONVERTED if result.precision == "fp32" else INT8
    kept = result.searched and within.metric is None and lost.get(name, math.inf) <= RUINED
    return name if kept else ""
