"""What people do otherwise: networks pruned and decomposed by other tools, other runtimes, and onnxruntime's int8."""

from __future__ import annotations

import copy
import importlib
import importlib.metadata
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime as ort
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import convsurgeon as cs
from tests.benchmarks.measure import in_turns, paired_ratio
from tests.benchmarks.runner import Row


def _pruned(importance: str, original: nn.Module, example: Tensor, images: Tensor, share: float) -> nn.Module:
    """Return the network without a share of its channels, by the importance of a name of torch-pruning."""
    pruning = importlib.import_module("torch_pruning")
    model = copy.deepcopy(original).requires_grad_(True)
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # torch-pruning finds no channels before one in place
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    kept = [layer for layer in layers[:-1] if layer.weight.shape[0] < 8] + layers[-1:]
    pruner = pruning.pruner.BasePruner(
        model, example, getattr(pruning.importance, importance)(), pruning_ratio=share, ignored_layers=kept,
        round_to=4,
    )  # fmt: skip
    output = model(images[:64])
    if output.dim() == 2 and output.shape[1] > 1:
        F.cross_entropy(output, output.argmax(1)).backward()
    else:  # how much every output moves, in a random direction
        (output * torch.randn(output.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    pruner.step()
    model.zero_grad()
    return model


def _decoupled(original: nn.Module, example: Tensor, _images: Tensor, share: float) -> nn.Module:
    """Return the network with separable convs of the SVD of the weights, of fewer terms the larger the share."""
    rank = max(1, round(9 * (1 - share)))
    return cs.convert(
        original, example, forms=[cs.DepthwiseSeparable(rank=rank)], calibration=False, progress=False
    ).model


def _tucker(original: nn.Module, _example: Tensor, _images: Tensor, share: float) -> nn.Module:
    """Return the network with every ungrouped k x k conv as three by the Tucker decomposition of its weights."""
    model = copy.deepcopy(original)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Conv2d) and layer.groups == 1 and min(layer.kernel_size) > 1 and layer.in_channels > 8:
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, _three(layer, 1 - share))
    return model


def _three(layer: nn.Conv2d, share: float) -> nn.Sequential:
    weight = layer.weight.detach().numpy()
    ranks = [max(1, round(share * size)) for size in weight.shape[:2]]
    (core, (after, before)), _ = importlib.import_module("tensorly.decomposition").partial_tucker(
        weight, rank=ranks, modes=[0, 1]
    )
    parts: list[tuple[Any, dict[str, Any]]] = [
        (before.T[:, :, None, None], {}),
        (core, {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}),
        (after[:, :, None, None], {}),
    ]
    convs = []
    for values, options in parts:
        wide = nn.Conv2d(values.shape[1], values.shape[0], values.shape[2:], bias=False, **options)
        wide.weight.data = torch.from_numpy(values.copy())
        convs.append(wide)
    convs[-1].bias = layer.bias
    made = nn.Sequential(*convs)
    made.out_channels = layer.out_channels  # type: ignore[assignment]  # which a shortcut may read
    return made


WAYS: dict[str, tuple[str, Callable[[nn.Module, Tensor, Tensor, float], nn.Module]]] = {
    "pruned by magnitude": ("torch-pruning", partial(_pruned, "GroupMagnitudeImportance")),
    "pruned by first order": ("torch-pruning", partial(_pruned, "GroupTaylorImportance")),
    "Network Decoupling": ("", _decoupled),
    "Tucker": ("tensorly", _tucker),
}
"""Package, and function of a network, an example, images and a share to be taken away."""


def quantise(float_file: Path, file: Path, images: Tensor) -> None:
    """Write onnxruntime's static int8 of a file, as its documentation recommends it."""
    quantization = importlib.import_module("onnxruntime.quantization")
    name = ort.InferenceSession(float_file, providers=["CPUExecutionProvider"]).get_inputs()[0].name

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc,name-defined]
        """Feeds one image at a time."""

        def __init__(self) -> None:
            self.feeds = ({name: image[None].numpy()} for image in images)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.feeds, None)

    ready = file.with_name("ready.onnx")
    quantization.quant_pre_process(str(float_file), str(ready), skip_symbolic_shape=True)
    quantization.quantize_static(str(ready), str(file), Reader(), per_channel=True)


def elsewhere(models: Mapping[str, nn.Module], example: Tensor) -> Iterator[Row]:
    """Yield how fast networks run in torch and OpenVINO, in turns with the first of them in onnxruntime.

    One thread's processor time counts: OpenVINO computes in a thread of its own, which other work may keep waiting.
    """
    tasks: dict[str, Callable[[], object]] = {}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for name, model in models.items():
            file = Path(folder) / f"{name}.onnx"
            cs.onnx.export(model, example, file)
            if not tasks:
                tasks["onnxruntime"] = _in_onnxruntime(file, example)
                wide = torch.channels_last if example.dim() == 4 else torch.contiguous_format
                model = copy.deepcopy(model).to(memory_format=wide)  # type: ignore[call-overload]
                tasks[f"{name} in torch {torch.__version__}"] = partial(model, example.to(memory_format=wide))
            tasks[f"{name} in torch.compile {torch.__version__}"] = partial(torch.compile(model), example)
            tasks[f"{name} in OpenVINO {importlib.metadata.version('openvino')}"] = _in_openvino(file, example)
        times = in_turns(tasks, rounds=20, runs=8, clock=time.process_time)
    base = times.pop("onnxruntime")
    for way, own in times.items():
        found = paired_ratio(base, own)
        yield {"way": way, "times as fast": found["ratio"], "interval": found["interval"]}


def _in_onnxruntime(file: Path, example: Tensor) -> Callable[[], object]:
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    session = ort.InferenceSession(file, settings, providers=["CPUExecutionProvider"])
    return partial(session.run, None, {session.get_inputs()[0].name: example.numpy()})


def _in_openvino(file: Path, example: Tensor) -> Callable[[], object]:
    core = importlib.import_module("openvino").Core()
    compiled = core.compile_model(str(file), "CPU", {"INFERENCE_NUM_THREADS": 1})
    return partial(compiled.create_infer_request().infer, [example.numpy()])
