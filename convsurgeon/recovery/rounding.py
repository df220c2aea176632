"""Learning through rounding: a model in training computes as its int8 file will, and its weights learn to bear it.

Weights of convs and linear layers are rounded output channel by output channel, what these layers read to 256 levels of
the range that the exporter's calibrator finds. Gradients pass a rounding as if it were not there (Bengio et al. 2013,
arXiv 1308.3432) and end where a value is cut off (Jacob et al. 2018, arXiv 1712.05877). A batch norm behind a conv
scales whole output channels, so the levels are those of the weights that it is folded into.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn

from convsurgeon.base.errors import ExportError
from convsurgeon.deploy.int8.histogram import Array, Range, counts, extremes, percentile
from convsurgeon.deploy.int8.target import Target
from convsurgeon.graph.example import Example
from convsurgeon.graph.hooks import reading
from convsurgeon.graph.state import evaluating
from convsurgeon.recovery.stream import Batch

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_LEVELS = 255


def learn_rounded(model: nn.Module, sample: Sequence[Batch], target: Target, left: Collection[str] = ()) -> None:
    """From now on the model rounds in every forward pass; its state dict stays as it is.

    Args:
        model: a working copy; hooks stay on it.
        sample: batches that the ranges of activations are found on.
        target: what the int8 file will be for.
        left: names of layers that stay in float there.
    """
    layers = [module for name, module in model.named_modules() if isinstance(module, LAYERS) and name not in left]
    for layer, span in zip(layers, _spans(model, layers, sample), strict=True):
        if span is not None:
            rounding = _Rounding(span, target.largest_weight)
            layer.register_forward_pre_hook(rounding.enter)
            layer.register_forward_hook(rounding.leave, always_call=True)


def in_float(model: nn.Module, example: Example, target: Target) -> frozenset[str]:
    """Names of the layers that the int8 file will leave in float; the nodes of an exported graph bear them."""
    from convsurgeon.deploy.int8.steps import kept  # loads onnx and the runtime
    from convsurgeon.deploy.onnx.export import exported_graph

    try:
        return kept(exported_graph(model, example), target)
    except ExportError:  # it says so itself when the file is written
        return frozenset()


class _Rounding:
    """Hooks around one layer: its input and its weight are rounded while it computes."""

    def __init__(self, span: Range, largest: int) -> None:
        self.low, self.high, self.largest = *_with_zero(span), largest

    def enter(self, layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Puts a rounded weight before the parameter, where attributes are looked up first."""
        layer.__dict__["weight"] = _weight(layer._parameters["weight"], self.largest)
        return (self._input(args[0]), *args[1:])

    def leave(self, layer: nn.Module, args: object, output: object) -> None:
        """The parameter is the weight again."""
        layer.__dict__.pop("weight", None)

    def _input(self, values: Tensor) -> Tensor:
        step = (self.high - self.low) / _LEVELS
        cut = values.clamp(self.low, self.high)
        return cut + ((cut / step).round() * step - cut).detach()


def _weight(weight: Tensor | None, largest: int) -> Tensor:
    assert weight is not None
    step = weight.detach().abs().flatten(1).amax(1).clamp(min=torch.finfo(weight.dtype).tiny) / largest
    step = step.reshape(-1, *[1] * (weight.dim() - 1))
    return weight + ((weight / step).round() * step - weight).detach()


def _with_zero(span: Range) -> Range:
    """Widened to hold 0, which has to be a level: padding is made of it."""
    low, high = min(span[0], 0.0), max(span[1], 0.0)
    step = (high - low) / _LEVELS
    return (low, high) if low == 0.0 else (round(low / step) * step, round(low / step) * step + high - low)


def _spans(model: nn.Module, layers: Sequence[nn.Module], sample: Sequence[Batch]) -> list[Range | None]:
    """The range of what each layer reads; None of one that is not called, or reads nothing but one value."""
    spans: dict[nn.Module, Range] = {}
    bins: dict[nn.Module, Array] = {}

    def widen(layer: nn.Module, args: tuple[Any, ...]) -> None:
        spans[layer] = extremes(_array(args[0]), None, spans.get(layer))

    def count(layer: nn.Module, args: tuple[Any, ...]) -> None:
        bins[layer] = counts(_array(args[0]), spans[layer], bins.get(layer))

    def run() -> None:
        for batch in sample:
            batch.example.run(model)

    with evaluating(model):
        with reading(layers, widen):
            run()
        with reading([layer for layer, (low, high) in spans.items() if high > low], count):
            run()
    return [percentile(bins[layer], *spans[layer]) if layer in bins else None for layer in layers]


def _array(values: Tensor) -> npt.NDArray[Any]:
    found: npt.NDArray[Any] = values.detach().float().cpu().numpy()
    return found
