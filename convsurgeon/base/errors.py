"""Every error that a user can cause. A message is one line: what is wrong, where, and what to do."""

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


class WriteError(ConvSurgeonError):
    """The place to write to exists already or cannot be written."""


class ExportError(ConvSurgeonError):
    """The model has no ONNX form, or the file is not what was asked for."""


class ParityError(ExportError):
    """The ONNX file computes something else than the model it was exported from."""


class ResourceError(ConvSurgeonError):
    """The system refuses memory, processes, threads or files."""


class LatencyError(ConvSurgeonError):
    """An ONNX file cannot be timed."""


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, cut to 300 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


def expect(value: object, kind: type | tuple[type, ...], wanted: str, error: type[ConvSurgeonError]) -> None:
    """Raise an error that says what is wanted, and the type that a caller gave, unless a value is of that kind."""
    if not isinstance(value, kind):
        raise error(f"{wanted}, got {type(value).__name__}")


def describe(error: BaseException) -> str:
    """Return the class of an exception and the first line of its message."""
    kind, line = type(error).__name__, first_line(error)
    return kind if line == kind else f"{kind}: {line}"


def reason(error: OSError | ValueError) -> str:
    """Return what the operating system says went wrong, without the path."""
    return str(getattr(error, "strerror", None) or error)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean ...?" with the known names closest to a misspelt one, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.4)
    return f"; did you mean {' or '.join(close)}?" if close else ""
