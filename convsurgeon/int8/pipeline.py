"""The steps from a float graph to an int8 one, in memory: what `quantize` does to a file."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from onnx import ModelProto

from convsurgeon.int8.equalise import equalise
from convsurgeon.int8.float_ends import image_ends
from convsurgeon.int8.merge_sums import join
from convsurgeon.int8.qdq import rounded
from convsurgeon.int8.ranges import Calibrator, Ranges, found
from convsurgeon.int8.target import Target
from convsurgeon.int8.weight_rounding import fit
from convsurgeon.onnxnet.session import Feed


def prepare(model: ModelProto, feeds: Sequence[Feed], calibrator: Calibrator, equalised: bool = True) -> Ranges:
    """Brings a float graph, in place, into the form that rounds best, and finds the ranges of its values.

    Args:
        model: it computes the same afterwards.
        feeds: calibration inputs.
        calibrator: how ranges are found.
        equalised: whether channels are evened out.
    """
    join(model.graph)
    if equalised:
        equalise(model, feeds)
    return found(model, feeds, calibrator)


def lower(
    model: ModelProto,
    ranges: Ranges,
    feeds: Sequence[Feed],
    target: Target,
    left: Collection[str] = (),
    fitted: bool = True,
) -> ModelProto:
    """An int8 graph of a float one, which stays as it is.

    Args:
        model: see `prepare`, which also gives its ranges.
        ranges: of its values.
        feeds: calibration inputs.
        target: what for.
        left: names of nodes that stay in float (see `kept`).
        fitted: whether weights are rounded to what their layer computes.

    Raises:
        ExportError: the quantiser fails on it.
    """
    made = rounded(model, ranges, target, left)
    if not fitted:
        return made
    exact = ModelProto.FromString(model.SerializeToString())
    scales = fit(exact, made, feeds, target, left)
    return rounded(exact, ranges, target, left, scales)


def kept(model: ModelProto, target: Target) -> frozenset[str]:
    """Names of the nodes that stay in float by themselves: the ends of a network that adds to an image."""
    return frozenset() if target.whole else image_ends(model)
