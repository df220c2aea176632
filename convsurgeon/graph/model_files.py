"""Models that are files: an ONNX file and an example become a network and its inputs, whoever asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from convsurgeon.base.arrays import as_tensor
from convsurgeon.base.errors import CaptureError
from convsurgeon.graph.example import Example
from convsurgeon.graph.obstacles import check_module
from convsurgeon.graph.outputs import tensors_in
from convsurgeon.onnxnet.modules import FileInput
from convsurgeon.onnxnet.network import OnnxNetwork

Model = nn.Module | str | Path
"""A module, or the path of an ONNX file."""


def open_model(
    model: Model, example: object = None, shapes: Mapping[str | int, tuple[int, ...]] | None = None
) -> tuple[nn.Module, object]:
    """Return a module and an example of its inputs; a module that is given comes back as it is.

    The example of a file is a tensor, a tuple of them in the file's order, or a dict by the inputs' names. It is not
    needed where all sizes but the batch are fixed; `shapes`, by name or by place, may stand for it where they are open.
    """
    if isinstance(model, OnnxNetwork):
        return model, _inputs(model.file_inputs, example)
    if not isinstance(model, str | Path):
        check_module(model)
        if example is None:
            raise CaptureError("example: a model needs one; pass a tensor, a tuple of arguments or a dict")
        return model, example
    from convsurgeon.onnxnet.build import build_network  # onnx and onnxruntime load with the first file
    from convsurgeon.onnxnet.source_file import inputs_of, read_source
    from convsurgeon.onnxnet.values import to_array

    source = read_source(model)
    if example is not None:
        shapes = {}
        for name, value in _by_name(example).items():
            if not isinstance(value, Tensor):
                raise CaptureError(f"example: {name} is a {type(value).__name__}; an ONNX file takes tensors")
            shapes[name] = tuple(value.shape)
    ports = inputs_of(source, dict(shapes or {}))
    given = _inputs(ports, example)
    tensors = given.kwargs or {ports[0].name: given.args[0]}
    feed = {port.name: to_array(tensors[port.name], port.kind) for port in ports}
    network = build_network(source, ports, feed)
    if size := _only_batch(network, given):
        network.keep_batch(size)
    return network, given


def _only_batch(network: OnnxNetwork, example: Example) -> int:
    """Return the example's batch size where the file mixes the rows of a batch, or takes no other size; else 0.

    A file of a fixed size may hold shapes as constants: two images in a batch then run into each other.
    """
    tensors = example.tensors()
    size = tensors[0].shape[0] if tensors[0].dim() else 0
    if not size:
        return 0
    other = example.map(lambda tensor: tensor.flip(-1) if tensor.is_floating_point() else tensor)
    open_ended = [port.name for port in network.file_inputs if any(axis == 0 for axis, _ in port.open)]
    rows = [one.dim() > 1 or port.name in open_ended for one, port in zip(tensors, network.file_inputs, strict=True)]
    triples = zip(tensors, other.tensors(), rows, strict=True)
    both = iter([torch.cat([one, two]) if many else one for one, two, many in triples])
    with torch.no_grad():
        try:
            one = tensors_in(example.run(network))
        except Exception as error:  # of a piece that the runtime takes only as a part of the whole
            words = " ".join(str(error).split())[:300]
            place = network.source.path
            raise CaptureError(f"{place}: does not run in pieces ({words}); simplify the graph") from error
        try:
            two = tensors_in(other.run(network))
            joined = tensors_in(example.map(lambda _: next(both)).run(network))
        except Exception:  # what the runtime or torch says of a shape that does not fit
            return size
    return 0 if all(map(_side_by_side, one, two, joined)) and len(one) == len(joined) else size


def _side_by_side(one: Tensor, two: Tensor, both: Tensor) -> bool:
    """Return whether a value of two batches is the values of each, one beside the other, but for rounding."""
    finite = both[both.isfinite()].double()
    rounding = 1e-4 * float(finite.abs().max()) + 1e-30 if finite.numel() else 0.0
    for axis in range(one.dim()):
        sizes = [tensor.shape[axis] for tensor in (one, two, both)]
        if sizes[0] + sizes[1] != sizes[2] or one.shape[:axis] != both.shape[:axis]:
            continue
        wanted = torch.cat([one.double(), two.double()], axis) if one.shape == two.shape else both[:0]
        if wanted.shape == both.shape and bool(((wanted - both).abs() <= rounding).all()):
            return True
    return False


def _by_name(example: object) -> dict[str | int, Any]:
    made = Example.of(_tensors(example))
    named: dict[str | int, Any] = {str(name): value for name, value in made.kwargs.items()}
    return dict(enumerate(made.args)) | named


def _tensors(example: object) -> object:
    if isinstance(example, np.ndarray):
        return as_tensor(example)
    if isinstance(example, Mapping):
        return {name: _tensors(value) for name, value in example.items()}
    return tuple(map(_tensors, example)) if isinstance(example, tuple | list) else example


def _inputs(ports: tuple[FileInput, ...], example: object) -> Example:
    """Return the example by position for one input, by name in the file's order for several."""
    if example is None:
        tensors = {port.name: _made_up(port) for port in ports}
    else:
        given = _by_name(example)
        unknown = [name for name in given if isinstance(name, str) and name not in {port.name for port in ports}]
        if unknown or len(given) != len(ports):
            names = ", ".join(port.name for port in ports)
            raise CaptureError(f"example: the file's inputs are {names}; pass one tensor for each")
        places = iter(range(len(ports)))
        tensors = {port.name: given[port.name] if port.name in given else given[next(places)] for port in ports}
        tensors = {port.name: tensors[port.name].detach().cpu().to(port.dtype) for port in ports}
    if len(ports) == 1:
        return Example((tensors[ports[0].name],))
    return Example((), tensors)


def _made_up(port: FileInput) -> Tensor:
    """Values of an input: noise, pixels for small whole numbers, zeros for others, which are mostly indices."""
    generator = torch.Generator().manual_seed(0)
    if port.dtype.is_floating_point:
        return torch.randn(port.shape, generator=generator, dtype=port.dtype, device="cpu")
    if port.dtype in (torch.uint8, torch.int8):
        return torch.randint(0, 128, port.shape, generator=generator, dtype=torch.int64, device="cpu").to(port.dtype)
    return torch.zeros(port.shape, dtype=port.dtype, device="cpu")
