"""Linear layers as 1x1 convs, so that they are sites with a cost, an error and a line in every report."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from convsurgeon.base.errors import CaptureError, PolicyError, describe, nearest
from convsurgeon.base.normal import in_normal_mode
from convsurgeon.forms.as_conv import LinearAsConv
from convsurgeon.graph.example import Example
from convsurgeon.graph.model_files import Model
from convsurgeon.graph.obstacles import check_model, holders_of, plain_obstacle
from convsurgeon.graph.outputs import float_tensors
from convsurgeon.graph.state import undisturbed, watch_inputs
from convsurgeon.planning.select import fits
from convsurgeon.planning.swap import swap_modules


@in_normal_mode
def linear_as_conv(
    model: Model, example: object, names: str | Sequence[str] = "*", *, min_weights: int = 1 << 16
) -> nn.Module:
    """Return a copy of a model that computes the same, with its linear layers as 1x1 convs, which can be changed.

        wide = cs.linear_as_conv(vgg, example)
        result = cs.convert(wide, example, calibration=images, goal=cs.Budget(params=0.2))

    The convs are called as the layers were, with `.conv` behind. A layer that is left alone although its name was asked
    for is warned of, with the reason.

    Args:
        model: any module that runs on the example; left as it was, to the bit.
        example: a tensor, a tuple of arguments, a dict of keyword arguments, or an `Example`.
        names: of the layers, with `*` for any letters.
        min_weights: smaller layers are left alone, as not worth a change.

    Raises:
        PolicyError: a name that fits no linear layer.
        CaptureError: the model does not run on the example, or not with these layers as convs; or none is left.
    """
    if not isinstance(model, nn.Module):
        raise CaptureError("linear_as_conv: takes a torch module; in an ONNX file only convs are rewritten")
    check_model(model)
    inputs = Example.of(example)
    wanted = [names] if isinstance(names, str) else list(names)
    found = _asked_for(model, wanted)
    large = {name: linear for name, linear in found.items() if linear.weight.numel() >= min_weights}
    dims, outputs = _run(model, inputs, large)
    holders = holders_of(model)
    new: dict[int, Any] = {}
    for name, linear in large.items():
        if why := plain_obstacle(linear, nn.Linear, holders) or _shape_obstacle(dims.get(id(linear), set())):
            warnings.warn(f"linear_as_conv: {name} is left alone: {why}", stacklevel=2)
        elif id(linear) not in new:
            new[id(linear)] = LinearAsConv(linear, *dims[id(linear)])
    if not new:
        raise CaptureError(
            f"linear_as_conv: no layer is left of the {len(found)} of {', '.join(wanted)}, {len(large)} of them of "
            f"{min_weights} weights and more; go on with the model as it is"
        )
    made = swap_modules(model, new)
    _check_same(made, inputs, outputs)
    return made


def _asked_for(model: nn.Module, wanted: Sequence[str]) -> dict[str, nn.Linear]:
    """Return the linear layers of these names, each under its first."""
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if not linears:
        raise CaptureError(f"linear_as_conv: {type(model).__name__} has no linear layer; go on with it as it is")
    for pattern in wanted:
        if not any(fits(name, pattern) for name in linears):
            raise PolicyError(f"linear_as_conv: no linear layer is named {pattern!r}{nearest(pattern, linears)}")
    return {name: linear for name, linear in linears.items() if any(fits(name, pattern) for pattern in wanted)}


def _run(model: nn.Module, inputs: Example, linears: dict[str, nn.Linear]) -> tuple[dict[int, set[int]], list[Tensor]]:
    """Return how many dimensions each layer's inputs have, by its `id`, and the outputs of the model."""
    dims: dict[int, set[int]] = {}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        dims.setdefault(id(module), set()).add((args[0] if args else kwargs["input"]).dim())

    with undisturbed(model), watch_inputs(linears.values(), note, by_name=True):
        try:
            return dims, float_tensors(_placed(inputs, model).run(model))
        except Exception as error:
            kind = type(model).__name__
            raise CaptureError(
                f"linear_as_conv: {kind} does not run on an input of shape {inputs}: {describe(error)}; pass an "
                "example that model(...) accepts"
            ) from error


def _placed(inputs: Example, model: nn.Module) -> Example:
    """Return the example, without values where the model has none."""
    on_meta = any(parameter.is_meta for parameter in model.parameters())
    return inputs.map(lambda tensor: tensor.to("meta")) if on_meta else inputs


def _shape_obstacle(dims: set[int]) -> str:
    """Return why a layer that reads tensors of so many dimensions cannot be a conv; empty where it can."""
    if not dims:
        return "the example never reaches it in eval mode"
    if len(dims) > 1:
        return f"it reads tensors of {' and '.join(map(str, sorted(dims)))} dimensions"
    return "" if dims <= set(LinearAsConv.DIMS) else f"it reads a tensor of {min(dims)} dimensions"


def _check_same(made: nn.Module, inputs: Example, outputs: list[Tensor]) -> None:
    try:
        with undisturbed(made):
            found = float_tensors(_placed(inputs, made).run(made))
    except Exception as error:  # whatever code around a layer reads of it
        raise CaptureError(
            f"linear_as_conv: with these layers as convs the model fails ({describe(error)}); name others"
        ) from error
    for one, two in zip(outputs, found, strict=True):
        if one.is_meta:
            return
        scale = float(one.abs().max()) if one.numel() else 0.0
        if not torch.allclose(one, two, rtol=1e-3, atol=1e-4 * scale, equal_nan=True):
            raise CaptureError("linear_as_conv: the model gives something else with these layers as convs; name others")
