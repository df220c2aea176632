"""Open a model: a module with its example, or an ONNX file as the network that it describes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from convsurgeon.base.errors import CaptureError
from convsurgeon.graph.example import Example
from convsurgeon.graph.outputs import tensors_in
from convsurgeon.onnxnet.modules import FileInput
from convsurgeon.onnxnet.network import OnnxNetwork

Model = nn.Module | str | Path
"""A module, or the path of an ONNX file."""


def is_onnx(name: str) -> bool:
    """Return whether a model is an ONNX file, by its name."""
    return name.lower().endswith(".onnx")


def open_model(
    model: Model, example: object = None, shapes: Mapping[str | int, tuple[int, ...]] | None = None
) -> tuple[nn.Module, object]:
    """Return a module and an example of its inputs; a module comes back as it is.

    Args:
        model: a module, or the path of an ONNX file.
        example: for a file a tensor, a tuple of them in the file's order, or a dict by the inputs' names. Not needed
            where the sizes of its inputs are fixed, but for the batch.
        shapes: in place of an example, of the inputs of a file whose sizes are open, by name or by place.

    Raises:
        CaptureError: A size is open, or onnxruntime does not run the file on the example.
        LoadError: It is not an ONNX file, or its convs are quantised.
    """
    if isinstance(model, OnnxNetwork):
        return model, _example_for(model.file_inputs, example)
    if not isinstance(model, str | Path):
        if example is None:
            raise CaptureError("example: a model needs one; pass a tensor, a tuple of arguments or a dict")
        return model, example
    from convsurgeon.onnxnet.build import build_network  # onnx and onnxruntime load with the first file
    from convsurgeon.onnxnet.source_file import inputs_of, read_source
    from convsurgeon.onnxnet.values import to_array

    source = read_source(model)
    inputs = inputs_of(source, dict(shapes or {}) if example is None else _shapes_of(example))
    given = _example_for(inputs, example)
    tensors = given.kwargs or {inputs[0].name: given.args[0]}
    network = build_network(source, inputs, {one.name: to_array(tensors[one.name], one.kind) for one in inputs})
    if size := _only_batch(network, given):
        network.keep_batch(size)
    return network, given


def _only_batch(network: OnnxNetwork, example: Example) -> int:
    """Return the batch size of the example where the file mixes the images of a batch or takes no other, else 0.

    A file of a fixed size may hold shapes as constants: two images in a batch then run into each other.
    """
    tensors = example.tensors()
    size = tensors[0].shape[0] if tensors[0].dim() else 0
    if not size:
        return 0
    other = example.map(lambda tensor: tensor.flip(-1) if tensor.is_floating_point() else tensor)
    open_ended = [one.name for one in network.file_inputs if any(axis == 0 for axis, _ in one.open)]
    joins = [
        tensor.dim() > 1 or one.name in open_ended for tensor, one in zip(tensors, network.file_inputs, strict=True)
    ]
    triples = zip(tensors, other.tensors(), joins, strict=True)
    both = iter([torch.cat([one, two]) if join else one for one, two, join in triples])
    with torch.no_grad():
        try:
            one = tensors_in(example.run(network))
        except Exception as error:  # of a subgraph that the runtime takes only as a part of the whole
            words = " ".join(str(error).split())[:300]
            raise CaptureError(f"{network.source.path}: does not run in parts ({words}); simplify the graph") from error
        try:
            two = tensors_in(other.run(network))
            joined = tensors_in(example.map(lambda _: next(both)).run(network))
        except Exception as error:  # what the runtime or torch says of a shape that does not fit
            logging.getLogger(__name__).debug("%s takes batches of %d alone: %s", network.source.path, size, error)
            return size
    return 0 if len(one) == len(joined) and all(map(_is_joined, one, two, joined)) else size


def _is_joined(one: Tensor, two: Tensor, both: Tensor) -> bool:
    """Return whether a value of two batches is the values of each, one after the other, but for rounding."""
    finite = both[both.isfinite()].double()
    limit = 1e-4 * float(finite.abs().max()) + 1e-30 if finite.numel() else 0.0
    for axis in range(one.dim()):
        if one.shape[:axis] != both.shape[:axis] or one.shape[axis] + two.shape[axis] != both.shape[axis]:
            continue
        wanted = torch.cat([one.double(), two.double()], axis) if one.shape == two.shape else both[:0]
        if wanted.shape == both.shape and bool(((wanted - both).abs() <= limit).all()):
            return True
    return False


def _by_name(example: object) -> dict[str | int, Tensor]:
    """Return tensors by the names or the places of their inputs."""
    made = Example.of(_arrays_as_tensors(example))
    named: dict[str | int, Tensor] = {str(name): value for name, value in made.kwargs.items()}
    return dict(enumerate(made.args)) | named


def _arrays_as_tensors(example: object) -> object:
    if isinstance(example, np.ndarray):
        return torch.as_tensor(example)
    if isinstance(example, Mapping):
        return {name: _arrays_as_tensors(value) for name, value in example.items()}
    return tuple(map(_arrays_as_tensors, example)) if isinstance(example, tuple | list) else example


def _shapes_of(example: object) -> dict[str | int, tuple[int, ...]]:
    found: dict[str | int, Any] = dict(_by_name(example))
    for name, value in found.items():
        if not isinstance(value, Tensor):
            raise CaptureError(f"example: {name} is a {type(value).__name__}; an ONNX file takes tensors")
    return {name: tuple(value.shape) for name, value in found.items()}


def _example_for(inputs: tuple[FileInput, ...], example: object) -> Example:
    """Return the example by position for one input, by name in the file's order for several."""
    if example is None:
        tensors = {one.name: _make_values(one) for one in inputs}
    else:
        given = _by_name(example)
        names = [one.name for one in inputs]
        if len(given) != len(inputs) or any(isinstance(name, str) and name not in names for name in given):
            raise CaptureError(f"example: the file's inputs are {', '.join(names)}; pass one tensor for each")
        places = iter(range(len(inputs)))
        found = {one.name: given[one.name] if one.name in given else given[next(places)] for one in inputs}
        tensors = {one.name: found[one.name].detach().cpu().to(one.dtype) for one in inputs}
    return Example((tensors[inputs[0].name],)) if len(inputs) == 1 else Example((), tensors)


def _make_values(one: FileInput) -> Tensor:
    """Return values for an input: noise, pixels for small whole numbers, zeros for others, which are mostly indices."""
    generator = torch.Generator().manual_seed(0)
    if one.dtype.is_floating_point:
        return torch.randn(one.shape, generator=generator, dtype=one.dtype)
    if one.dtype in (torch.uint8, torch.int8):
        return torch.randint(0, 128, one.shape, generator=generator, dtype=torch.int64).to(one.dtype)
    return torch.zeros(one.shape, dtype=one.dtype)
