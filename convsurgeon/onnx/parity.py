"""Parity: the same inputs through the torch model and through its ONNX file must give the same outputs.

Every case is run with the runtime's graph optimisations off and on. A case that fails with them off is the exporter's
fault; one that fails only with them on is the runtime's. The error of an output y against the reference r is

    relative = max |y - r| / max |r|            sqnr = 10 log10( sum r^2 / sum (y - r)^2 )   in dB, summed in float64

and a case is as bad as the worst of its outputs. NaN or infinity on either side is a failure. (A conversion's error is
an average over a variance, which hides a single wrong value; here none may hide.)
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from tabulate import tabulate
from torch import nn

from convsurgeon.base.arrays import Array
from convsurgeon.base.errors import LatencyError, ParityError, first_line
from convsurgeon.base.normal import check_resources, in_normal_mode
from convsurgeon.graph.example import Example
from convsurgeon.graph.outputs import tensors_in
from convsurgeon.graph.state import undisturbed
from convsurgeon.onnx.inputs import copy_to_cpu, order_example, randomise, resize_example
from convsurgeon.onnxnet.network import OnnxNetwork
from convsurgeon.onnxnet.session import open_session, session_options

_LOG = logging.getLogger(__name__)
_LIMITS = (1e-4, 80.0)
_HALF_LIMITS = (3e-2, 35.0)


@dataclass(frozen=True)
class ParityCase:
    """One input through one session."""

    inputs: str
    """What was fed: `example`, `seed 0`, `seed 0, batch 3`."""
    optimised: bool
    relative: float
    """Largest deviation over the largest reference value; infinite if anything is not finite."""
    sqnr_db: float
    """Signal over error; infinite if the outputs are identical."""
    passed: bool


@dataclass(frozen=True)
class Parity:
    """How far an ONNX file is from the model it was exported from."""

    cases: tuple[ParityCase, ...]
    relative_limit: float
    sqnr_limit_db: float

    @property
    def passed(self) -> bool:
        """Whether every case is within both limits."""
        return bool(self.cases) and all(case.passed for case in self.cases)

    @property
    def relative(self) -> float:
        """The worst relative error of all cases."""
        return max((case.relative for case in self.cases), default=math.inf)

    @property
    def sqnr_db(self) -> float:
        """The worst SQNR of all cases."""
        return min((case.sqnr_db for case in self.cases), default=-math.inf)

    @property
    def fault(self) -> str:
        """Where a failure comes from, in words; `none` if there is none."""
        failed = [case for case in self.cases if not case.passed]
        if not failed:
            return "none"
        return "the runtime's optimisations" if all(case.optimised for case in failed) else "the export"

    def __str__(self) -> str:
        rows = []
        for case in self.cases:
            figures = (f"{case.relative:.1e}", f"{case.sqnr_db:.1f}", "holds" if case.passed else "FAILS")
            rows.append((case.inputs, "on" if case.optimised else "off", *figures))
        table = tabulate(rows, headers=("inputs", "optimisations", "max relative error", "SQNR dB", "parity"))
        return f"{table}\nlimits: relative {self.relative_limit:g}, SQNR {self.sqnr_limit_db:g} dB"


@in_normal_mode
def check_parity(
    model: nn.Module,
    example: Any,
    path: str | Path,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    images: Sequence[Any] = (),
    relative: float | None = None,
    sqnr_db: float | None = None,
) -> Parity:
    """Compare a model in eval mode with an ONNX file on the example and on random inputs like it.

    Args:
        model: The torch model; it is left as it was. One on another device is compared through a copy on the CPU.
        example: A tensor, a tuple of arguments or a dict of keyword arguments.
        path: The ONNX file.
        seeds: One more case per seed: normal noise with the shape, mean and standard deviation of the example. Integer
            inputs are reused. Where the file has a symbolic batch or size, other batches and sizes are tried too.
        images: Further examples, best real ones, in the shape of the file's inputs.
        relative: Largest relative error that passes; 1e-4 by default, or 3e-2 for a file in half precision.
        sqnr_db: Smallest signal over error that passes, in dB; 80 by default, or 35 for a file in half precision.

    Raises:
        CaptureError: The example holds no tensor.
        ParityError: The file cannot be run on the example at all. A deviation is reported, not raised.
    """
    usual = limits_of(model)
    relative = usual[0] if relative is None else relative
    sqnr_db = usual[1] if sqnr_db is None else sqnr_db
    file, subject = Path(path), copy_to_cpu(model)
    session = _open(file, optimised=False)
    shapes = [value.shape for value in session.get_inputs()]
    given = _cases(order_example(model, example), seeds, shapes)
    real = [(f"image {index}", order_example(model, image)) for index, image in enumerate(images)]
    wanted = _references(subject, [*given, *real], file)

    def judged(session: ort.InferenceSession, optimised: bool) -> list[ParityCase]:
        found = []
        for name, one, reference in wanted:
            worst, quietest = _worst(reference, _run(session, one, file))
            passed = worst <= relative and quietest >= sqnr_db
            found.append(ParityCase(name, optimised, worst, quietest, passed))
        return found

    off = judged(session, optimised=False)
    del session  # one at a time: each holds the weights
    on = judged(_open(file, optimised=True), optimised=True)
    return Parity(tuple(case for pair in zip(off, on, strict=True) for case in pair), relative, sqnr_db)


def _references(
    subject: nn.Module, given: Sequence[tuple[str, Example]], file: Path
) -> list[tuple[str, Example, list[Array]]]:
    """Return every input with its name and what the model gives for it."""
    found = []
    with undisturbed(subject):
        for name, one in given:
            try:
                found.append((name, one, [tensor.detach().numpy().copy() for tensor in tensors_in(one.run(subject))]))
            except Exception as error:  # of whatever the network is made of
                if not (isinstance(subject, OnnxNetwork) and name.startswith("seed 0, ")):
                    raise
                # a file may call sizes open that are not
                _LOG.info("%s: %s is left out: the network cannot take it (%s)", file, name, first_line(error))
    return found


def limits_of(model: nn.Module) -> tuple[float, float]:
    """Return the usual limits, relative and in dB; the runtime rounds half precision at every step."""
    return _HALF_LIMITS if isinstance(model, OnnxNetwork) and model.half_precision else _LIMITS


def deviation(reference: Array, output: Array) -> tuple[float, float]:
    """Return relative error and SQNR in dB of one output; (inf, -inf) if shapes differ or a value is not finite."""
    if reference.shape != output.shape:
        return math.inf, -math.inf
    if reference.size == 0:
        return 0.0, math.inf
    wanted, got = reference.astype(np.float64), output.astype(np.float64)
    if not (np.isfinite(wanted).all() and np.isfinite(got).all()):
        return math.inf, -math.inf
    error, signal = got - wanted, float(np.sum(wanted**2))
    noise, peak = float(np.sum(error**2)), float(np.max(np.abs(wanted)))
    if noise == 0:
        return 0.0, math.inf
    if signal == 0:
        return math.inf, -math.inf
    return float(np.max(np.abs(error))) / peak, 10 * math.log10(signal / noise)


def _worst(reference: Sequence[Array], outputs: Sequence[Array]) -> tuple[float, float]:
    if len(reference) != len(outputs):
        raise ParityError(f"{len(outputs)} outputs in the ONNX file, {len(reference)} in torch; return tensors only")
    pairs = [deviation(wanted, got) for wanted, got in zip(reference, outputs, strict=True)]
    return max((pair[0] for pair in pairs), default=math.inf), min((pair[1] for pair in pairs), default=-math.inf)


def _cases(first: Example, seeds: Sequence[int], shapes: Sequence[Sequence[object]]) -> Iterator[tuple[str, Example]]:
    yield "example", first
    for seed in seeds:
        yield f"seed {seed}", randomise(first, seed)
    fixed = [{axis for axis, size in enumerate(shape) if isinstance(size, int)} for shape in shapes]
    if any(shape and isinstance(shape[0], str) for shape in shapes):
        for batch in (1, 3):
            wider = resize_example(first, {0: lambda _, batch=batch: batch}, fixed=fixed)  # type: ignore[misc]
            yield f"seed 0, batch {batch}", randomise(wider, 0)
    if any(len(shape) > 2 and isinstance(shape[2], str) for shape in shapes):
        sizes = {2: lambda size: 2 * size, 3: lambda size: size + size // 2 * 2}
        yield "seed 0, larger", randomise(resize_example(first, sizes, rank=4, fixed=fixed), 0)


def _open(path: Path, optimised: bool) -> ort.InferenceSession:
    try:
        return open_session(path, session_options(level="all" if optimised else "off", spinning=False))
    except LatencyError as error:
        raise ParityError(str(error)) from error


def _run(session: ort.InferenceSession, example: Example, path: Path) -> list[Array]:
    """Feed by name where the example names its inputs as the file does, else in order."""
    values = session.get_inputs()
    names, given = [value.name for value in values], example.tensors()
    if not example.args and set(names) <= set(example.kwargs):
        given = [example.kwargs[name] for name in names]
    if len(given) != len(names):
        raise ParityError(
            f"{path}: {len(names)} inputs in the ONNX file, {len(given)} tensors in the example; pass those"
        )
    feed = {}
    for value, tensor in zip(values, given, strict=True):
        array = tensor.numpy()
        feed[value.name] = array.astype(np.float16) if value.type == "tensor(float16)" else array
    try:
        return list(session.run(None, feed))
    except Exception as error:  # the runtime's exceptions share no base class but Exception
        check_resources(error)
        raise ParityError(f"{path}: onnxruntime cannot run it on the example: {first_line(error)}") from error
