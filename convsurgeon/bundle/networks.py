"""The files of a bundle that hold networks: written, compared, timed, and one of them recommended."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from safetensors.torch import save
from torch import Tensor, nn

from convsurgeon.base.errors import ExportError, ParityError
from convsurgeon.base.progress import bar
from convsurgeon.bundle.int8_files import MIXED, compare_files, make_noise, single_batches, write_int8, write_mixed
from convsurgeon.bundle.loading import sha256
from convsurgeon.bundle.losses import allowed_loss, ask_metric, chosen_file, doubts, known_values, losses
from convsurgeon.bundle.mobile import mobile_check
from convsurgeon.bundle.recommend import recommend
from convsurgeon.calibration.dataset import Calibration, images_in
from convsurgeon.distill.loss import OutputJudge
from convsurgeon.graph.example import Example
from convsurgeon.graph.outputs import tensors_in
from convsurgeon.graph.state import undisturbed
from convsurgeon.int8.compare import Agreement
from convsurgeon.int8.quantize import Quantized
from convsurgeon.onnx import inputs
from convsurgeon.onnx.exporter import OnnxFile, copy_file, write_exported, write_file
from convsurgeon.onnx.metadata import Preparation, source_metadata
from convsurgeon.onnx.rewritten_file import new_weights
from convsurgeon.onnx.torch_export import Dynamic
from convsurgeon.onnxnet.measuring.engine import CPU, Engine
from convsurgeon.onnxnet.network import OnnxNetwork
from convsurgeon.report.bundle import CONVERTED, INT8, ORIGINAL, Bundle
from convsurgeon.result import Result
from convsurgeon.search.goal import Within
from convsurgeon.timing.benchmark import LEVELS, Bench, bench

_PARITY_IMAGES = 4
_KIND_IMAGES = 64
"""From which the default's tolerance is known: whether the network classifies, and adds little to its input."""
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Request:
    """What a bundle is to hold: `export`'s arguments, and how images become inputs."""

    int8: bool
    dynamic: Dynamic
    preparation: Preparation
    pairs: int
    threads: tuple[int, ...]
    engine: Engine
    """Whose provider and options are timed."""
    progress: bool


def write_network_files(result: Result, data: Calibration | None, request: Request, folder: Path) -> Bundle:
    """Write everything that computes, and measure it; `data` has its arguments in the order of the files' inputs."""
    like = inputs.order_example(result.original, result.example)
    held_out = () if data is None else data.held_back
    real = single_batches(held_out, like)
    with bar(total=5, desc="export", unit="step", show=request.progress) as steps:
        original = _write_float(result, ORIGINAL, real, request, folder)
        steps.update()
        converted = _write_float(result, CONVERTED, real, request, folder)
        save_weights(result.model, folder / "weights.safetensors")
        save_example(result.model, real[0] if real else like, converted, folder)
        steps.update()
        fitted = data.fitted if request.int8 and data is not None else ()
        rewritten = bool(result.changes) or _operators(original.path) != _operators(converted.path)
        distinct = (original, converted) if rewritten else (original,)  # else the two are the same network
        quantized, failed = write_int8(distinct if request.int8 else (), fitted)
        steps.update()
        shown = real or single_batches(held_out, like, any_size=True)
        where = "8 random inputs (no images were given)"
        if shown and data is not None:
            where = f"{sum(map(images_in, shown))} {'synthetic' if data.synthetic else 'held-out'} images"
        near = compare_files(original, (converted, *quantized), shown or make_noise(like))
        asked, notes = ask_metric(result, quantized)
        mobile = [mobile_check(one.path) for one in distinct]
        bundle = Bundle(
            folder=folder,
            original=original,
            converted=converted,
            quantized=tuple(quantized),
            agreement=tuple(near),
            agreement_on=where,
            values=known_values(result) | asked,
            notes=(*failed, *notes),
            rewritten=rewritten,
            mobile={ORIGINAL: mobile[0], CONVERTED: mobile[-1]},
            preparation=request.preparation,
        )
        steps.update()
        if request.pairs and len(distinct) + len(quantized) > 1:
            bundle = _recommend(bundle, result, fitted, shown, request)
        steps.update()
    sums = {name: sha256(folder / name) for name in bundle.sizes}
    return dataclasses.replace(bundle, sha256=sums, doubts=doubts(result, bundle.values))


def _recommend(
    bundle: Bundle, result: Result, fitted: Sequence[Example], shown: Sequence[Example], request: Request
) -> Bundle:
    """Return the bundle with all files timed, and one of them recommended.

    Where int8 is too far from the original, a file with some layers in float is tried, and kept if it is the fastest.
    """
    like = inputs.order_example(result.original, result.example)
    within = result.within or Within().resolve(result.original, OutputJudge(result.original, shown[:_KIND_IMAGES]))
    lost = losses(within, bundle.agreement, bundle.values)
    allowed, chosen = allowed_loss(lost, result, within), chosen_file(lost, result, within)
    tried = bundle
    if fitted and lost.get(INT8, 0.0) > allowed > lost[CONVERTED]:
        share = (allowed - lost[CONVERTED]) / (lost[INT8] - lost[CONVERTED])
        tried = _add_mixed(bundle, result, within, fitted, shown or make_noise(like), allowed, share)
        lost = losses(within, tried.agreement, tried.values)
    timed = _time([bundle.folder / name for name in tried.distinct], like, result, request)
    best = recommend(timed.timings, lost, allowed, chosen)
    if MIXED not in tried.sizes or best.name == MIXED:
        return dataclasses.replace(tried, bench=timed, recommended=best)
    (bundle.folder / MIXED).unlink()
    return dataclasses.replace(bundle, bench=timed.without(MIXED), recommended=best)


def _add_mixed(
    bundle: Bundle,
    result: Result,
    within: Within,
    fitted: Sequence[Example],
    shown: Sequence[Example],
    allowed: float,
    share: float,
) -> Bundle:
    """Return the bundle with an int8 file that keeps some layers in float, if one is near enough."""

    def look(one: Quantized) -> tuple[Agreement, dict[str, float]]:
        return compare_files(bundle.original, [one], shown)[0], ask_metric(result, [one])[0]

    def is_enough(one: Quantized) -> bool:
        near, values = look(one)
        return losses(within, [near], values)[MIXED] <= allowed

    rounded = next(one for one in bundle.quantized if one.path.name == INT8)
    mixed, note = write_mixed(bundle.converted, rounded, fitted, share, is_enough)
    bundle = dataclasses.replace(bundle, notes=(*bundle.notes, note))
    if mixed is None:
        return bundle
    near, values = look(mixed)
    return dataclasses.replace(
        bundle,
        quantized=(*bundle.quantized, mixed),
        agreement=(*bundle.agreement, near),
        values={**bundle.values, **values},
    )


def _write_float(result: Result, name: str, images: Sequence[Example], request: Request, folder: Path) -> OnnxFile:
    """Write one of the two float files: an ONNX file's original byte for byte, what was exported already as it was."""
    is_original, images, place = name == ORIGINAL, images[:_PARITY_IMAGES], folder / name
    model, example = result.original if is_original else result.model, result.example
    if isinstance(model, OnnxNetwork):
        if is_original:
            made = copy_file(model, example, place, images)
        else:
            made = write_file(model, example, place, metadata={}, images=images)
    else:
        metadata = source_metadata(result.original, None if is_original else result.plan, request.preparation)
        again: OnnxFile | None = None
        if result.exported is not None and request.dynamic is None and (is_original or not result.changes):
            with contextlib.suppress(ParityError):  # its weights were changed since
                again = write_exported(result.exported, model, example, place, metadata, images, as_it_was=is_original)
        made = again or write_file(
            model, example, place, dynamic=request.dynamic, metadata=metadata, images=images, as_it_was=is_original
        )
    request.preparation.check(made.inputs)
    return made


def _operators(path: Path) -> list[str]:
    """Return the operators of a file in their order."""
    return [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]


def _time(paths: Sequence[Path], like: Example, result: Result, request: Request) -> Bench:
    """Time the files; open dimensions get the sizes of the example."""
    shape = tuple(like.tensors()[0].shape)
    sizes = dict(zip(("batch", "", "height", "width"), shape, strict=False))
    if isinstance(result.original, OnnxNetwork):
        sizes |= result.original.sizes
    return bench(
        *paths,
        pairs=request.pairs,
        threads=request.threads,
        levels=LEVELS if request.engine.provider == CPU else LEVELS[:1],
        provider=request.engine.provider,
        options=request.engine.options,
        batch=shape[0] if shape else 1,
        sizes=sizes,
        progress=request.progress,
    )


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a state dict under all its names; of an ONNX file's network only what is not the file's."""
    state: Mapping[str, Tensor] = new_weights(model) if isinstance(model, OnnxNetwork) else model.state_dict()
    if sparse := [name for name, tensor in state.items() if tensor.layout is not torch.strided]:
        raise ExportError(f"{sparse[0]}: is sparse, which safetensors does not hold; register it with persistent=False")
    tensors = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
    path.write_bytes(save(tensors))  # save_file would make the file private


def save_example(model: nn.Module, example: Example, file: OnnxFile, folder: Path) -> None:
    """Write one input and the torch model's output for it, under the names of the file's inputs and outputs."""
    with undisturbed(model):
        found = [tensor.detach().cpu().numpy() for tensor in tensors_in(example.run(model))]
    given = [tensor.numpy() for tensor in example.tensors()]
    _save_npz(folder / "example_inputs.npz", dict(zip((name for name, _ in file.inputs), given, strict=True)))
    _save_npz(folder / "example_outputs.npz", dict(zip((name for name, _ in file.outputs), found, strict=True)))


def _save_npz(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write the same bytes for the same arrays, whatever their names: `numpy.savez` cannot take `file`."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            target = io.BytesIO()
            np.lib.format.write_array(target, np.asarray(array, order="C"), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", _EPOCH), target.getvalue())
