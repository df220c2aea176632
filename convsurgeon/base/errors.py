"""Every error a user can cause, as one tree.

    ConvSurgeonError
    |-- CaptureError      the model cannot be run on the example, or is of a kind that cannot be rewritten
    |-- PolicyError       a policy names a layer that does not exist, or its text does not parse
    |-- FormError         a form's own parameters are out of range, or a demanded layer cannot take it
    |-- PlanError         a plan file is damaged, or was made for another model
    |-- BudgetError       a budget cannot be read, or cannot be reached
    |-- CalibrationError  the calibration data are empty, of another shape, or not finite
    |-- RecoveryError     a recipe for recovery is out of range, or a checkpoint belongs to another run
    |-- LoadError         a model factory or a weight file cannot be read
    |-- OutputError       the place to write to exists already or cannot be written
    |-- ExportError       the model has no ONNX form, or the file is not what was asked for
    |   `-- ParityError   the ONNX file computes something else than the model
    `-- LatencyError      an ONNX file cannot be timed

Messages are one line: what went wrong, where, and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConvSurgeonError(Exception):
    """Base of every error that a user's input can cause."""


class CaptureError(ConvSurgeonError):
    """The model cannot be run on the example, or is of a kind that cannot be rewritten."""


class PolicyError(ConvSurgeonError):
    """A policy names a layer that does not exist, or its text does not parse."""


class FormError(ConvSurgeonError):
    """A form's parameters are out of range, or a layer demanded by name cannot take it."""


class PlanError(ConvSurgeonError):
    """A plan file is damaged, or was made for another model."""


class BudgetError(ConvSurgeonError):
    """A budget cannot be read, or cannot be reached."""


class CalibrationError(ConvSurgeonError):
    """The calibration data are empty, of another shape, or not finite."""


class RecoveryError(ConvSurgeonError):
    """A recipe for recovery is out of range, or a checkpoint belongs to another run."""


class LoadError(ConvSurgeonError):
    """A model factory or a weight file cannot be read."""


class OutputError(ConvSurgeonError):
    """The place to write to exists already or cannot be written."""


class ExportError(ConvSurgeonError):
    """The model has no ONNX form, or the file is not what was asked for."""


class ParityError(ExportError):
    """The ONNX file computes something else than the model it was exported from."""


class LatencyError(ConvSurgeonError):
    """An ONNX file cannot be timed."""


def first_line(error: BaseException) -> str:
    """One short line that says what an exception of another library said."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


def described(error: BaseException) -> str:
    """The class of an exception and its first line: what there is to say of one that others raise."""
    kind, line = type(error).__name__, first_line(error)
    return kind if line == kind else f"{kind}: {line}"


def reason(error: OSError | ValueError) -> str:
    """Why the system did not do something, without the path; Python's own words where it was not asked."""
    return str(getattr(error, "strerror", None) or error)


def nearest(name: str, known: Iterable[str]) -> str:
    """The known names most like a misspelt one, as the end of a message; empty if none is close."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.4)
    return f"; did you mean {' or '.join(close)}?" if close else ""
