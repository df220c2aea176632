"""Learning through rounding: a model in training computes as its int8 file will, and its weights learn to bear it.

Weights of convs and linear layers are rounded output channel by output channel, what these layers read to 256 levels of
the range that the exporter's calibrator finds. Gradients pass a rounding as if it were not there (Bengio et al. 2013,
arXiv 1308.3432) and end where a value is cut off (Jacob et al. 2018, arXiv 1712.05877).

What a conv reads is divided by the exporter's factors (see `equalise`), and its weights are multiplied by them, while
both are rounded. Weights that `weight_rounding` fits are not rounded here: little of their error is left.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn

from convsurgeon.base.arrays import Array
from convsurgeon.base.errors import describe
from convsurgeon.graph.example import Example
from convsurgeon.graph.state import evaluating, watch_inputs
from convsurgeon.int8.histogram import Range, count_bins, cut_range, widen_range
from convsurgeon.int8.target import Target

_LOG = logging.getLogger(__name__)

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_LEVELS = 255


@dataclass(frozen=True)
class Exported:
    """What the exporter will do with the layers of a model, by their names.

    `left` stay in float; `fitted` have their weights rounded to what they compute; `scales` (C,) are what the channels
    of a layer's input are divided by where it is rounded.
    """

    left: frozenset[str] = frozenset()
    fitted: frozenset[str] = frozenset()
    scales: Mapping[str, Array] = field(default_factory=dict)


def as_exported(model: nn.Module, sample: Sequence[Example], target: Target) -> Exported:
    """Return what the exporter itself would do with a model; its nodes bear the names of the layers."""
    from convsurgeon.int8.equalise import equalise  # loads onnx and the runtime
    from convsurgeon.int8.float_ends import find_float_ends
    from convsurgeon.int8.float_joins import find_float_joins
    from convsurgeon.int8.module import build_float_graph
    from convsurgeon.int8.weight_rounding import find_roundable

    try:
        graph, feeds = build_float_graph(model, list(sample))
        left = find_float_ends(graph, target) | find_float_joins(graph, feeds, target)
        return Exported(left, find_roundable(graph.graph), equalise(graph, feeds))
    except Exception as error:  # of torch's exporter or of the runtime
        _LOG.warning("recover: the int8 export failed (%s); all layers are rounded plainly", describe(error))
        return Exported()


def learn_rounded(model: nn.Module, sample: Sequence[Example], target: Target, exported: Exported = Exported()) -> None:
    """Make a working copy round in every forward pass from now on, by hooks; its state dict stays as it is.

    The ranges of activations are found on `sample`; `exported` is what the exporter will do with the layers.
    """
    layers: dict[nn.Module, Tensor] = {
        module: _scale(module, exported.scales.get(name))
        for name, module in model.named_modules()
        if isinstance(module, LAYERS) and name not in exported.left
    }
    fitted = {module for name, module in model.named_modules() if name in exported.fitted}
    for layer, span in zip(layers, _spans(model, layers, sample), strict=True):
        if span is not None:
            rounding = _Rounding(span, target.largest_weight, layers[layer], weights=layer not in fitted)
            layer.register_forward_pre_hook(rounding.enter)
            layer.register_forward_hook(rounding.leave, always_call=True)


def _scale(layer: nn.Module, scale: Array | None) -> Tensor:
    """Return the factors of the channels that a layer reads, 1 where there are none."""
    if scale is None or isinstance(layer, nn.Linear) or len(scale) != getattr(layer, "in_channels", 0):
        return torch.ones(1, dtype=torch.float32, device="cpu")
    assert isinstance(layer.weight, Tensor)
    return torch.from_numpy(scale).to(layer.weight).reshape(-1, *[1] * (layer.weight.dim() - 2))


class _Rounding:
    """Hooks around one layer: its input is rounded while it computes, and its weight where it is to be."""

    def __init__(self, span: Range, largest: int, scale: Tensor, weights: bool) -> None:
        self.low, self.high, self.largest, self.scale, self.weights = *_with_zero(span), largest, scale, weights

    def enter(self, layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Put a rounded weight before the parameter, where attributes are looked up first."""
        if self.weights:
            layer.__dict__["weight"] = self._weight(layer)
        return (self._input(args[0]), *args[1:])

    def leave(self, layer: nn.Module, args: object, output: object) -> None:
        layer.__dict__.pop("weight", None)

    def _input(self, values: Tensor) -> Tensor:
        step = (self.high - self.low) / _LEVELS
        scale = self.scale.to(values)
        cut = (values / scale).clamp(self.low, self.high)
        return (cut + ((cut / step).round() * step - cut).detach()) * scale

    def _weight(self, layer: nn.Module) -> Tensor:
        weight = layer._parameters["weight"]
        assert weight is not None
        if len(self.scale) == 1:
            return _rounded(weight, self.largest)
        groups = weight.new_ones(len(weight)).reshape(getattr(layer, "groups", 1), -1)
        scale = torch.einsum("go,gi->goi", groups, self.scale.to(weight).reshape(len(groups), -1)).flatten(0, 1)
        scale = scale.reshape(*scale.shape, *[1] * (weight.dim() - 2))
        return _rounded(weight * scale, self.largest) / scale


def _rounded(weight: Tensor, largest: int) -> Tensor:
    step = weight.detach().abs().flatten(1).amax(1).clamp(min=torch.finfo(weight.dtype).tiny) / largest
    step = step.reshape(-1, *[1] * (weight.dim() - 1))
    return weight + ((weight / step).round() * step - weight).detach()


def _with_zero(span: Range) -> Range:
    """Return the range widened to hold 0, which must be a level: padding is made of it."""
    low, high = min(span[0], 0.0), max(span[1], 0.0)
    step = (high - low) / _LEVELS
    return (low, high) if low == 0.0 else (round(low / step) * step, round(low / step) * step + high - low)


def _spans(model: nn.Module, layers: Mapping[nn.Module, Tensor], sample: Sequence[Example]) -> list[Range | None]:
    """Return the range of what each layer reads, over its factors; None if it is never called or reads one value."""
    spans: dict[nn.Module, Range] = {}
    bins: dict[nn.Module, Array] = {}

    def read(layer: nn.Module, args: tuple[Any, ...]) -> npt.NDArray[Any]:
        values: Tensor = args[0] / layers[layer].to(args[0])
        return values.detach().float().cpu().numpy()

    def widen(layer: nn.Module, args: tuple[Any, ...]) -> None:
        spans[layer] = widen_range(read(layer, args), spans.get(layer))

    def count(layer: nn.Module, args: tuple[Any, ...]) -> None:
        bins[layer] = count_bins(read(layer, args), spans[layer], bins.get(layer))

    with evaluating(model):
        with watch_inputs(layers, widen):
            for batch in sample:
                batch.run(model)
        with watch_inputs([layer for layer, (low, high) in spans.items() if high > low], count):
            for batch in sample:
                batch.run(model)
    return [cut_range(bins[layer], *spans[layer]) if layer in bins else None for layer in layers]
