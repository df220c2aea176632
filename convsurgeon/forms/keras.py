"""Separable weights to and from the layout of Keras' `SeparableConv2D`, without Keras.

A separable layer of rank T is Keras' layer with `depth_multiplier=T`: its depthwise kernel is (kh, kw, C, T), its
pointwise kernel (1, 1, C * T, O), in which the T channels that come from one input channel lie side by side. Strides,
dilation and `"same"` padding mean the same at stride 1; at other strides Keras pads more at the end than torch, so give
it `padding="valid"` behind a `ZeroPadding2D` there. Keras has no groups.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from convsurgeon.base.arrays import Array
from convsurgeon.base.errors import FormError
from convsurgeon.forms.modules import SummedBranches


def to_keras_kernels(layer: nn.Module) -> list[Array]:
    """Return what `SeparableConv2D(O, (kh, kw), depth_multiplier=T).set_weights` takes.

    Args:
        layer: a depthwise-separable layer of a converted model, `result.model.get_submodule(name)`.

    Returns:
        Depthwise kernel (kh, kw, C, T), pointwise kernel (1, 1, C * T, O), and the bias (O,) if there is one.

    Raises:
        FormError: the layer is not a separable one, or has groups.
    """
    depthwise, pointwise = zip(*map(_convs, _branches(layer)), strict=True)
    windows = torch.stack([conv.weight[:, 0] for conv in depthwise], -1)  # C, kh, kw, T
    mixings = torch.stack([conv.weight[:, :, 0, 0] for conv in pointwise], -1)  # O, C, T
    kernels = [windows.permute(1, 2, 0, 3), mixings.flatten(1).T[None, None]]
    bias = pointwise[0].bias
    found = kernels if bias is None else [*kernels, bias]
    return [kernel.detach().float().cpu().contiguous().numpy().copy() for kernel in found]


def from_keras_kernels(layer: nn.Module, kernels: list[Array]) -> None:
    """Fill a separable layer with what Keras' `SeparableConv2D.get_weights()` gives.

    Args:
        layer: a separable layer of matching sizes, such as one of a model made by `rebuild`; changed in place.
        kernels: depthwise kernel (kh, kw, C, T), pointwise kernel (1, 1, C * T, O), and the bias (O,) if it has one.

    Raises:
        FormError: the layer is not a separable one, or the sizes differ.
    """
    own = [kernel.shape for kernel in to_keras_kernels(layer)]
    given = [np.shape(kernel) for kernel in kernels]
    if own != given:
        raise FormError(f"kernels: of shapes {given}, but the layer takes {own}; make it of the same sizes and rank")
    windows, mixings, *bias = (torch.from_numpy(np.array(kernel)) for kernel in kernels)
    rank = windows.shape[3]
    with torch.no_grad():
        for t, branch in enumerate(_branches(layer)):
            depthwise, pointwise = _convs(branch)
            depthwise.weight.copy_(windows[..., t].permute(2, 0, 1)[:, None])
            pointwise.weight.copy_(mixings[0, 0, t::rank].T[..., None, None])
            if bias and pointwise.bias is not None:
                pointwise.bias.copy_(bias[0])


def _branches(layer: nn.Module) -> list[nn.Module]:
    """Return the branches, if they are separable and mix all channels."""
    branches = list(layer.branches) if isinstance(layer, SummedBranches) else []
    names = [[name for name, _ in branch.named_children()] for branch in branches]
    if not branches or any(name != ["depthwise", "pointwise"] for name in names):
        raise FormError(f"layer: a {type(layer).__name__} is not separable; pass one made by DepthwiseSeparable")
    if any(_convs(branch)[1].groups > 1 for branch in branches):
        raise FormError("layer: it has groups, which Keras' SeparableConv2D has not")
    return branches


def _convs(branch: nn.Module) -> tuple[nn.Conv2d, nn.Conv2d]:
    depthwise, pointwise = branch.children()
    assert isinstance(depthwise, nn.Conv2d)
    assert isinstance(pointwise, nn.Conv2d)
    return depthwise, pointwise
