"""The smaller versions of a bundle's two networks, and how near every file is to the original."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import onnx

from convsurgeon.calibration.dataset import Calibration, images_in
from convsurgeon.graph.example import Example
from convsurgeon.int8.compare import Agreement, compare_outputs
from convsurgeon.int8.feeds import make_feeds
from convsurgeon.int8.quantize import Quantized, convert_fp16, quantize
from convsurgeon.int8.ranges import Calibrator
from convsurgeon.int8.target import Target
from convsurgeon.onnx import inputs
from convsurgeon.onnx.exporter import OnnxFile
from convsurgeon.onnxnet.session import Feed

Kind = Literal["int8", "fp16"]
Enough = Callable[[Quantized], bool]
_NOISE_SEEDS = range(8)


def write(
    files: Sequence[OnnxFile],
    data: Calibration | None,
    like: Example,
    kinds: Sequence[Kind],
    calibrator: Calibrator,
    exclude_worst: int,
    target: Target,
    before: Callable[[str], None],
) -> tuple[Quantized, ...]:
    """Writes `NAME-int8.onnx` and `NAME-fp16.onnx` beside the float files, each behind its own check.

    Raises:
        ExportError: A file cannot be quantised, or the calibration does not fill its batch.
        ParityError: A version is too far from its float file.
    """
    made = []
    for kind in kinds:
        for file in files:
            place = file.path.with_name(f"{file.path.stem}-{kind}.onnx")
            before(place.name)
            if kind == "int8":
                assert data is not None  # `export` refuses int8 without it
                feeds = _feeds(file, data.fitted)
                how: dict[str, Any] = {"calibrator": calibrator, "exclude_worst": exclude_worst, "target": target}
                done = quantize(file.path, place, feeds, **how)
            else:
                shown = data.held_back if data is not None else _noise(like)
                done = convert_fp16(file.path, place, _feeds(file, shown))
            made.append(done)
    return tuple(made)


MIXED = "model-mixed.onnx"

_LEFT = (1, 2, 4, 8)
"""Layers that are left in float, one try after the other."""


def mixed(
    file: OnnxFile, rounded: Quantized, data: Calibration, calibrator: Calibrator, target: Target, enough: Enough
) -> tuple[Quantized, ...]:
    """The converted network with the fewest layers in float that bring it near enough, written as `MIXED`; or none.

    Args:
        file: in float.
        rounded: its int8 version, which is not near enough, and says which layers add most noise.
        data: calibration images.
        calibrator: how ranges are found.
        target: what for.
        enough: whether a file is near enough.
    """
    names = [one.name for one in rounded.worst]
    feeds = _feeds(file, data.fitted)
    place = file.path.with_name(MIXED)
    for count in (count for count in _LEFT if count < len(names)):
        how: dict[str, Any] = {"calibrator": calibrator, "target": target, "overwrite": True}
        made = quantize(file.path, place, feeds, exclude=names[:count], **how)
        if enough(made):
            return (made,)
    place.unlink(missing_ok=True)
    return ()


def compare(
    files: Sequence[OnnxFile | Quantized], real: Sequence[Example], like: Example, made_up: bool = False
) -> tuple[tuple[Agreement, ...], str]:
    """Every file but the first against the first, on held-back inputs if there are any, and on what in words."""
    shown = real or _noise(like)
    first, *others = files
    assert isinstance(first, OnnxFile)
    feeds = _feeds(first, shown)
    near = tuple(compare_outputs(first.path, other.path, feeds) for other in others)
    count = sum(map(images_in, shown))
    kind = "made-up" if made_up else "held-back"
    where = f"{count} {kind} images" if real else f"{count} random inputs (no images were given)"
    return near, where


def single_batches(held_back: Sequence[Example], like: Example, any_size: bool = False) -> list[Example]:
    """Real inputs cut into batches of the example's size; a remainder is dropped, and so are images of other sizes."""
    size = images_in(like)
    found = []
    for example in held_back:
        count = images_in(example)
        found += [_cut(example, slice(start, start + size)) for start in range(0, count - size + 1, size)]
    shapes = [tuple(tensor.shape) for tensor in like.tensors()]
    return [one for one in found if any_size or [tuple(tensor.shape) for tensor in one.tensors()] == shapes]


def _cut(example: Example, rows: slice) -> Example:
    """Some images of a batch; what has no batch dimension is kept whole."""
    count = images_in(example)
    return example.map(lambda tensor: tensor[rows] if tensor.dim() and tensor.shape[0] == count else tensor)


def _noise(like: Example) -> list[Example]:
    return [inputs.randomise(like, seed) for seed in _NOISE_SEEDS]


def _feeds(file: OnnxFile, examples: Sequence[Example]) -> list[Feed]:
    """Inputs under the file's names, in batches it takes."""
    names = [name for name, _ in file.inputs]
    rows = [dict(zip(names, (tensor.numpy() for tensor in example.tensors()), strict=True)) for example in examples]
    return make_feeds(onnx.load(file.path), rows)
