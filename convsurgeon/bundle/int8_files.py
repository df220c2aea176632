"""The int8 files of a bundle, and how near every file is to the original."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx

from convsurgeon.calibration.dataset import images_in, split_batches
from convsurgeon.graph.example import Example
from convsurgeon.int8.compare import Agreement, measure_agreement
from convsurgeon.int8.feeds import make_feeds
from convsurgeon.int8.quantize import Quantized, quantize
from convsurgeon.onnx import inputs
from convsurgeon.onnx.exporter import OnnxFile
from convsurgeon.onnxnet.session import Feed

MIXED = "model-mixed.onnx"
_NOISE_SEEDS = range(8)
_LEFT = (1, 2, 4, 8)
"""Layers that are left in float, one try after the other."""


def write_int8(file: OnnxFile, fitted: Sequence[Example]) -> Quantized:
    """Write `NAME-int8.onnx` beside a float file, with ranges from the images.

    Raises:
        ExportError: the file cannot be quantised, or the images do not fill its batch.
        ParityError: the int8 file is too far from its float file.
    """
    return quantize(file.path, file.path.with_name(f"{file.path.stem}-int8.onnx"), feeds_for(file, fitted))


def write_mixed(
    file: OnnxFile, rounded: Quantized, fitted: Sequence[Example], is_enough: Callable[[Quantized], bool]
) -> Quantized | None:
    """Write the converted network with the fewest layers in float that bring it near enough, as `MIXED`.

    `rounded` is its int8 version, which says which layers add most noise. Where no number of layers is enough, nothing
    is written and None returned.
    """
    names = [one.name for one in rounded.worst]
    place = file.path.with_name(MIXED)
    for count in (count for count in _LEFT if count < len(names)):
        made = quantize(file.path, place, feeds_for(file, fitted), exclude=names[:count], overwrite=True)
        if is_enough(made):
            return made
    place.unlink(missing_ok=True)
    return None


def compare_files(
    original: OnnxFile, others: Sequence[OnnxFile | Quantized], shown: Sequence[Example]
) -> list[Agreement]:
    """Return how near files are to the original, on the same inputs."""
    feeds = feeds_for(original, shown)
    return [measure_agreement(original.path, other.path, feeds) for other in others]


def make_noise(like: Example) -> list[Example]:
    """Return random inputs."""
    return [inputs.randomise(like, seed) for seed in _NOISE_SEEDS]


def single_batches(held_out: Sequence[Example], like: Example, any_size: bool = False) -> list[Example]:
    """Return images in batches of the example's size; a remainder is dropped, and so are images of other sizes."""
    found = split_batches(held_out, images_in(like))
    shapes = [tuple(tensor.shape) for tensor in like.tensors()]
    return [one for one in found if any_size or [tuple(tensor.shape) for tensor in one.tensors()] == shapes]


def feeds_for(file: OnnxFile, examples: Sequence[Example]) -> list[Feed]:
    """Return inputs under the file's names, in batches that it takes."""
    names = [name for name, _ in file.inputs]
    rows = [dict(zip(names, (tensor.numpy() for tensor in example.tensors()), strict=True)) for example in examples]
    return make_feeds(onnx.load(file.path), rows)
