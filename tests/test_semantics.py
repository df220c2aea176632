"""The forms and the counts against other implementations: Keras, a reference loop, oneDNN, fvcore, torchinfo."""

from __future__ import annotations

import copy
import os
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import convsurgeon as cs
from tests import nets, networks
from tests.growing import convert_growing


def _layer(rank: int, stride: int = 1, bias: bool = True) -> nn.Module:
    model = nn.Sequential(nn.Conv2d(5, 7, 3, stride, padding=1, bias=bias))
    forms = [cs.DepthwiseSeparable(rank=rank)]
    result = convert_growing(
        model, torch.randn(1, 5, 9, 8), forms=forms, policy=cs.select.everything(), calibration=False
    )
    return result.model[0]


def _as_keras_documents(x: Tensor, kernels: list[Any], stride: int) -> Tensor:
    """`SeparableConv2D` by its documentation: channel c * T + t of the middle is input channel c under filter t."""
    depthwise, pointwise = (torch.from_numpy(kernel) for kernel in kernels[:2])
    rank = depthwise.shape[3]
    middle = [
        F.conv2d(x[:, c : c + 1], depthwise[:, :, c, t][None, None], stride=stride, padding=1)
        for c in range(x.shape[1])
        for t in range(rank)
    ]
    out = torch.einsum("nmhw,mo->nohw", torch.cat(middle, 1), pointwise[0, 0])
    return out + torch.from_numpy(kernels[2])[:, None, None] if len(kernels) > 2 else out


@pytest.mark.parametrize("rank", [1, 2, 4])
@pytest.mark.parametrize("bias", [True, False])
def test_kernels_in_keras_layout_compute_the_same(rank: int, bias: bool) -> None:
    layer, x = _layer(rank, stride=2, bias=bias), torch.randn(2, 5, 9, 8)
    kernels = cs.to_keras_kernels(layer)
    assert [kernel.shape for kernel in kernels] == [(3, 3, 5, rank), (1, 1, 5 * rank, 7), (7,)][: 2 + bias]
    torch.testing.assert_close(_as_keras_documents(x, kernels, 2), layer(x), rtol=1e-5, atol=1e-6)
    other = _layer(rank, stride=2, bias=bias)
    cs.from_keras_kernels(other, kernels)
    assert torch.equal(other(x), layer(x))


def test_other_layers_and_sizes_are_refused() -> None:
    with pytest.raises(cs.errors.FormError, match="Conv2d"):
        cs.to_keras_kernels(nn.Conv2d(3, 3, 3))
    with pytest.raises(cs.errors.FormError, match=r"but the layer takes \[\(3, 3, 5, 2\), \(1, 1, 10, 7\), \(7,\)\]"):
        cs.from_keras_kernels(_layer(2), cs.to_keras_kernels(_layer(1)))
    grouped = cs.convert(
        nn.Sequential(nn.Conv2d(4, 8, 3, groups=2)),
        torch.zeros(1, 4, 5, 5),
        policy=cs.select.everything(),
        calibration=False,
    )
    if grouped.changes:
        with pytest.raises(cs.errors.FormError, match="it has groups, which Keras' SeparableConv2D has not"):
            cs.to_keras_kernels(grouped.model[0])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_keras_computes_the_same(rank: int, stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    layer, x = _layer(rank, stride), torch.randn(2, 5, 9, 8)
    theirs = keras.layers.SeparableConv2D(7, 3, strides=stride, depth_multiplier=rank, data_format="channels_first")
    padded = F.pad(x, (1, 1, 1, 1))
    theirs.build(padded.shape)
    theirs.set_weights(cs.to_keras_kernels(layer))
    torch.testing.assert_close(theirs(padded).detach(), layer(x).detach(), rtol=1e-4, atol=1e-5)
    fresh = [np.random.default_rng(0).normal(size=w.shape).astype("float32") for w in theirs.get_weights()]
    theirs.set_weights(fresh)
    cs.from_keras_kernels(layer, theirs.get_weights())
    torch.testing.assert_close(theirs(padded).detach(), layer(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:TF32 acceleration:UserWarning")
def test_depthwise_is_the_loop_with_and_without_onednn() -> None:
    conv = _layer(1).branches[0].depthwise
    x = torch.randn(2, 5, 9, 8)
    padded = F.pad(x, (1, 1, 1, 1))
    loop = torch.zeros(2, 5, 9, 8)
    for row in range(9):
        for column in range(8):
            loop[:, :, row, column] = (padded[:, :, row : row + 3, column : column + 3] * conv.weight[:, 0]).sum((2, 3))
    for enabled in (True, False):
        with torch.backends.mkldnn.flags(enabled=enabled):
            torch.testing.assert_close(conv(x), loop, rtol=1e-5, atol=1e-6)


MODELS = {
    "plain": (nets.Plain, (2, 3, 12, 12)),
    "shared": (nets.Shared, (2, 3, 12, 12)),
    "other": (nets.OtherConvs, (1, 8, 6, 6)),
    "resnet": (lambda: networks.cifar_resnet(20), (1, 3, 32, 32)),
}


def _measured(name: str, converted: bool) -> tuple[nn.Module, Tensor, int]:
    make, shape = MODELS[name]
    model, x = make().eval(), torch.randn(shape)
    if converted:
        model = cs.convert(model, x, forms=[cs.DepthwiseSeparable(rank=2)], calibration=False).model.eval()
    return model, x, cs.capture(model, x).cost.macs


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("converted", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_macs_are_fvcores(name: str, converted: bool) -> None:
    """Where fvcore counts more it is what nobody else does: norms, at 4 (2 affine) flops an element, and pooling."""
    nn_count = pytest.importorskip("fvcore.nn")
    model, x, macs = _measured(name, converted)
    counted = nn_count.FlopCountAnalysis(copy.deepcopy(model), x)
    counted.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    by_operator = counted.by_operator()
    products = sum(by_operator[key] for key in ("conv", "linear", "addmm", "matmul", "bmm"))
    assert products == macs
    assert set(by_operator) - {"conv", "linear", "addmm", "matmul", "bmm"} <= {"batch_norm", "adaptive_avg_pool2d"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("converted", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_macs_are_torchinfos_but_for_its_bias_and_norms(name: str, converted: bool) -> None:
    """torchinfo adds the bias, one MAC an output pixel and channel for a conv, and one per parameter of a norm.

    A transposed conv it counts with all taps at every output pixel, though stride 2 leaves a quarter of them.
    """
    torchinfo = pytest.importorskip("torchinfo")
    model, x, macs = _measured(name, converted)
    theirs = torchinfo.summary(copy.deepcopy(model), input_data=x, verbose=0).total_mult_adds
    seen = cs.capture(model, x)
    biases = sum(
        call.output_shape[0] * torch.Size(call.output_shape[1:]).numel()
        for site in seen.sites
        for call in site.calls
        if site.geometry.bias
    )
    linear = sum(x.shape[0] * module.bias.numel() for module in model.modules() if isinstance(module, nn.Linear))
    norms = sum(
        x.shape[0] * sum(parameter.numel() for parameter in module.parameters())
        for module in model.modules()
        if isinstance(module, nn.BatchNorm2d)
    )
    ran = 0 if name == "shared" else norms  # its norm is never run
    steps = sum(3 * site.macs for site in seen.sites if site.kind == "ConvTranspose2d")  # of stride 2 each way
    assert theirs == pytest.approx(macs + biases + linear + ran + steps, rel=1e-6)
