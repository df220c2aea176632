"""The files of a bundle that hold networks: written, compared, timed, and one of them recommended."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from convsurgeon.base.errors import ExportError
from convsurgeon.bundle import variants
from convsurgeon.bundle.deployment import Deployment
from convsurgeon.bundle.golden import save_golden
from convsurgeon.bundle.loading import sha256
from convsurgeon.bundle.mobile import mobile_check
from convsurgeon.bundle.recommendation import CONVERTED, INT8, ORIGINAL, Recommended, allowed_error, recommend
from convsurgeon.calibration.dataset import Calibration
from convsurgeon.conversion import Result
from convsurgeon.fit.residual import added_share
from convsurgeon.graph.example import Example
from convsurgeon.int8.compare import Agreement
from convsurgeon.int8.quantize import Quantized
from convsurgeon.int8.ranges import Calibrator
from convsurgeon.int8.target import Target
from convsurgeon.onnx import inputs
from convsurgeon.onnx.exporter import OnnxFile, copy_file, export
from convsurgeon.onnx.metadata import Preparation, source_metadata
from convsurgeon.onnx.rewritten_file import new_weights
from convsurgeon.onnx.torch_export import Dynamic
from convsurgeon.onnxnet.network import OnnxNetwork
from convsurgeon.onnxnet.session import Level
from convsurgeon.search.goal import DEFAULT_ERROR, DEFAULT_ERROR_ADDED
from convsurgeon.timing.benchmark import Bench, bench

_PARITY_IMAGES = 4


@dataclass(frozen=True)
class Order:
    """What was asked for."""

    opset: int
    dynamic: Dynamic
    kinds: tuple[variants.Kind, ...]
    calibrator: Calibrator
    exclude_worst: int
    target: Target
    preparation: Preparation
    pairs: int
    threads: tuple[int, ...]
    levels: tuple[Level, ...]
    progress: bool
    command: str
    before: Callable[[str], None]


def write_models(result: Result, data: Calibration | None, order: Order, folder: Path) -> Deployment:
    """Everything that computes, and all that is measured on it.

    Args:
        result: of the conversion.
        data: calibration images, arguments in the order of the files' inputs.
        order: what was asked for.
        folder: where the files go.
    """
    like = inputs.order_example(result.original, result.example)
    held_back = () if data is None else data.held_back
    real = variants.single_batches(held_back, like)
    original, converted = (_float(result, name, real[:_PARITY_IMAGES], order, folder) for name in (ORIGINAL, CONVERTED))
    order.before("weights.safetensors")
    save_weights(result.model, folder / "weights.safetensors")
    save_golden(result.model, real[0] if real else like, converted, folder)
    how = (order.kinds, order.calibrator, order.exclude_worst, order.target, order.before)
    quantized = variants.write((original, converted), data, like, *how)
    shown = real or variants.single_batches(held_back, like, any_size=True)
    found = _judged(result, original, converted, quantized, data, shown, like, order)
    files: list[OnnxFile | Quantized] = [original, converted, *found.quantized]
    return Deployment(
        original=original,
        converted=converted,
        quantized=found.quantized,
        agreement=found.near,
        agreement_on=found.where,
        mobile={one.path.name: mobile_check(one.path) for one in (original, converted)},
        benches=found.timed,
        preparation=order.preparation,
        recommended=found.best,
        sha256={one.path.name: sha256(one.path) for one in files},
        command=order.command,
    )


@dataclass(frozen=True)
class _Judged:
    """How near the files are, how fast, and which of them is to be shipped."""

    quantized: tuple[Quantized, ...]
    near: tuple[Agreement, ...]
    where: str
    timed: tuple[Bench, ...]
    best: Recommended | None


def _judged(
    result: Result,
    original: OnnxFile,
    converted: OnnxFile,
    quantized: tuple[Quantized, ...],
    data: Calibration | None,
    shown: Sequence[Example],
    like: Example,
    order: Order,
) -> _Judged:
    """Compares and times all files, and one with layers in float where int8 alone is too far off."""
    order.before("fidelity and mobile check")
    files: list[OnnxFile | Quantized] = [original, converted, *quantized]
    near, where = variants.compare(files, shown, like, data is not None and data.synthetic)
    allowed = _allowed(result, near, shown)

    def error(one: Quantized) -> Agreement:
        return variants.compare([original, one], shown, like)[0][0]

    far = {one.name for one in near if one.error > allowed}
    rounded = [one for one in quantized if one.path.name == INT8 and one.path.name in far]
    extra: tuple[Quantized, ...] = ()
    if rounded and data is not None and order.pairs and not order.exclude_worst:
        order.before(variants.MIXED)
        how = (order.calibrator, order.target, lambda one: error(one).error <= allowed)
        extra = variants.mixed(converted, rounded[0], data, *how)
    near = (*near, *map(error, extra))
    open_sizes = result.original.sizes if isinstance(result.original, OnnxNetwork) else {}
    timed = _timed([one.path for one in (*files, *extra)], like, open_sizes, order)
    best = recommend(timed[0].timings, {one.name: one.error for one in near}, allowed) if timed else None
    if extra and (best is None or best.name != variants.MIXED):  # the clock does not agree
        extra[0].path.unlink()
        return _Judged(quantized, near[:-1], where, tuple(one.without(variants.MIXED) for one in timed), best)
    return _Judged((*quantized, *extra), near, where, timed, best)


def _allowed(result: Result, near: Sequence[Agreement], shown: Sequence[Example]) -> float:
    """What a recommended file may lose."""
    errors = {one.name: one.error for one in near}
    accepted = CONVERTED if result.precision == "fp32" else INT8
    scale = added_share(result.original, shown[:_PARITY_IMAGES]) if shown else 1.0
    usual = DEFAULT_ERROR if scale == 1 else DEFAULT_ERROR_ADDED * scale
    searched = not math.isnan(result.most_error)
    return allowed_error(errors, result.most_error if searched else usual, accepted, searched)


def _float(result: Result, name: str, images: Sequence[Example], order: Order, folder: Path) -> OnnxFile:
    """One of the two float32 files."""
    order.before(name)
    model, plan = (result.original, None) if name == ORIGINAL else (result.model, result.plan)
    of_file = isinstance(model, OnnxNetwork)
    if isinstance(model, OnnxNetwork) and name == ORIGINAL:
        made = copy_file(model, result.example, folder / name, images)
    else:
        made = export(
            model,
            result.example,
            folder / name,
            opset=order.opset,
            dynamic=order.dynamic,
            metadata=None if of_file else source_metadata(result.original, plan, order.preparation),
            images=images,
        )
    order.preparation.check(made.inputs, made.outputs)
    return made


def _timed(paths: Sequence[Path], like: Example, known: Mapping[str, int], order: Order) -> tuple[Bench, ...]:
    """One bench, or none; open dimensions are set to those of the example."""
    if not order.pairs:
        return ()
    order.before("latency")
    shape = tuple(like.tensors()[0].shape)
    sizes = dict(zip(("batch", "", "height", "width"), shape, strict=False)) | dict(known)
    how: dict[str, Any] = {"pairs": order.pairs, "threads": order.threads, "levels": order.levels}
    return (bench(*paths, **how, batch=shape[0] if shape else 1, sizes=sizes, progress=order.progress),)


def save_weights(model: nn.Module, path: Path) -> None:
    """Writes a state dict under all its names; tensors that share storage are written once per name.

    Of the network of an ONNX file only what is not the file's.
    """
    state: Mapping[str, Tensor] = new_weights(model) if isinstance(model, OnnxNetwork) else model.state_dict()
    if sparse := [name for name, tensor in state.items() if tensor.layout is not torch.strided]:
        raise ExportError(f"{sparse[0]}: is sparse, which safetensors does not hold; register it with persistent=False")
    tensors = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
    path.write_bytes(save(tensors))  # save_file would make the file private
