"""The int8 files of a bundle, and how near every file is to the original."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence

import onnx

from convsurgeon.base.errors import ExportError, ParityError
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
_MOST_LEFT = 0.5
"""Share of the layers that may stay in float: with more of them there is little to gain."""


def write_int8(files: Sequence[OnnxFile], fitted: Sequence[Example]) -> tuple[list[Quantized], tuple[str, ...]]:
    """Write `NAME-int8.onnx` beside float files, with ranges from the images; return them, and notes on what failed."""
    made, notes = [], []
    for file in files:
        place = file.path.with_name(f"{file.path.stem}-int8.onnx")
        try:
            made.append(quantize(file.path, place, feeds_for(file, fitted)))
        except ExportError as error:
            notes.append(f"{str(error).replace(f'{place.parent}{os.sep}', '')}.")
    return made, tuple(notes)


def write_mixed(
    file: OnnxFile, rounded: Quantized, fitted: Sequence[Example], share: float, is_enough: Callable[[Quantized], bool]
) -> tuple[Quantized | None, str]:
    """Write the converted network with the layers in float that add most noise, as `MIXED`: in two tries at most.

    `rounded` says what noise the layers add, and `share` how much of it may stay. Returns the file, or None where it
    would not be near enough with half of the layers in float; and a note on what was tried.
    """
    noise = [max(one.added, 0.0) for one in rounded.worst]
    most = int(_MOST_LEFT * len(noise))
    first = next((count for count in range(1, most + 1) if sum(noise[count:]) <= share * sum(noise)), 0)
    place, tried = file.path.with_name(MIXED), list(dict.fromkeys((first, min(2 * first, most)))) if first else []
    for count in tried:
        names = [one.name for one in rounded.worst[:count]]
        with contextlib.suppress(ParityError):  # too far off to be written
            made = quantize(file.path, place, feeds_for(file, fitted), exclude=names, overwrite=True)
            if is_enough(made):
                return made, f"{MIXED} keeps in float the {count} of {len(noise)} layers that int8 hurts most."
    place.unlink(missing_ok=True)
    if not tried:
        return None, f"{rounded.path.name} loses too much, unless more than half of its layers stay in float."
    shown = " and ".join(map(str, tried))
    return None, f"{rounded.path.name} loses too much, and still does with {shown} of {len(noise)} layers in float."


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
