"""One site's fit: what stands behind the conv counts, whatever it is."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import convsurgeon as cs
from convsurgeon.fit.samples import Samples
from convsurgeon.fit.site import Epilogue, _share, fit_site, site_error
from convsurgeon.graph.capture import capture
from convsurgeon.graph.neighbours import Activation, callers, neighbours

ACTIVATIONS: dict[str, nn.Module] = {
    "relu": nn.ReLU(inplace=True),
    "prelu": nn.PReLU(6, init=0.2),
    "leaky": nn.LeakyReLU(0.1),
    "relu6": nn.ReLU6(),
    "silu": nn.SiLU(),
    "hardswish": nn.Hardswish(),
    "gelu": nn.GELU(),
    "elu": nn.ELU(),
    "sigmoid": nn.Sigmoid(),
    "tanh": nn.Tanh(),
}


class _Net(nn.Module):
    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.conv, self.activation, self.head = nn.Conv2d(5, 6, 3), activation, nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.activation(self.conv(x)))


class _Functions(_Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.leaky_relu(self.conv(x), 0.3))


def _found(net: nn.Module) -> Activation | None:
    seen = capture(net.eval(), torch.randn(1, 5, 8, 8))
    graph = seen.graph.graph
    node = next(node for node in graph.nodes if node.target == "conv")
    return neighbours(node, seen.graph, seen.graph.get_submodule("conv"), callers(graph, seen.graph)).activation


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_what_stands_behind_a_conv_is_read_with_its_slope(name: str) -> None:
    found = _found(_Net(ACTIVATIONS[name]))
    assert found is not None
    rows = torch.linspace(-7, 7, 6 * 40).reshape(40, 6)
    wanted = ACTIVATIONS[name](rows.clone()[..., None, None])[..., 0, 0]
    torch.testing.assert_close(found(rows), wanted)
    step = 1e-3
    torch.testing.assert_close(
        found.slope(rows), (found(rows + step) - found(rows - step)) / (2 * step), atol=0.51, rtol=0
    )
    assert (found.slope(rows) - (found(rows + step) - found(rows - step)) / (2 * step)).abs().median() < 1e-2


def test_functions_are_read_with_their_arguments_and_others_are_none() -> None:
    found = _found(_Functions(nn.Identity()))
    assert found is not None
    assert torch.equal(found(torch.tensor([[-2.0]])), torch.tensor([[-0.6]]))
    assert _found(_Net(nn.Softmax(1))) is None
    assert _found(_Net(nn.Identity())) is None


def test_behind_a_relu_the_target_is_what_zhang_says() -> None:
    original, predicted = torch.randn(2, 500, 3).unbind()
    share = _share(Activation(torch.relu), predicted, original, steepest=1.0)
    target = predicted + share * (original - predicted)
    torch.testing.assert_close(target, torch.where(original > 0, original, predicted.clamp(max=0)), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("form", [cs.DepthwiseSeparable(rank=1), cs.CP(rank=4)], ids=["separable", "cp"])
def test_a_fit_that_knows_what_follows_does_better_behind_it(name: str, form: cs.CP) -> None:
    conv = nn.Conv2d(5, 6, 3)
    patches = torch.randn(3000, 45) @ torch.randn(45, 45) / 6
    with torch.no_grad():
        targets = 2 * (patches @ conv.weight.flatten(1).T + conv.bias)
        conv.weight *= 2
        conv.bias *= 2
    zero = torch.zeros(3000, 6)
    samples = Samples(patches[:, None], targets)
    knowing = Epilogue(torch.ones(6), torch.zeros(6), (zero, zero), _found(_Net(ACTIVATIONS[name])), intercept=True)
    blind = dataclasses.replace(knowing, activation=None)
    metric = torch.eye(6, dtype=torch.float64)
    errors = []
    for epilogue in (knowing, blind):
        fitted = fit_site(form, conv, samples, epilogue, metric)
        errors.append(site_error(samples, knowing, fitted.dense, fitted.bias, metric))
    assert errors[0] < errors[1]
