"""Whole small graphs: branches, shared convs, odd shapes. Full rank must compute the same, whatever the graph."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import convsurgeon as cs
from convsurgeon.graph import capture
from convsurgeon.graph.outputs import outputs
from convsurgeon.planning.surgery import operate

_MODES = ("zeros", "zeros", "zeros", "reflect", "replicate", "circular")


class Graph(nn.Module):
    """Layers by number, and steps (operation, layer, inputs) that append to a list of values."""

    def __init__(self, layers: list[nn.Module], steps: list[tuple[str, int, tuple[int, ...]]]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.steps = steps

    def forward(self, x: Tensor) -> Any:
        values = [x]
        for name, layer, inputs in self.steps:
            given = [values[index] for index in inputs]
            values.append(self.layers[layer](given[0]) if name == "layer" else _OPERATIONS[name](*given))
        return values[-1] if len(self.steps) % 3 else {"last": values[-1], "all": values[-2:]}


_OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "relu": F.relu,
    "relu_": lambda x: F.relu_(x * 1),
    "tanh": torch.tanh,
    "add": lambda a, b: a + b,
    "concat": lambda a, b: torch.cat([a, b], 1),
    "pool": lambda x: F.max_pool2d(x, 2),
    "grow": lambda x: F.interpolate(x, scale_factor=2),
    "turn": lambda x: x.transpose(2, 3),
    "branch": lambda x: x * 2 if float(x.detach().mean()) < 1e9 else x,
}


def graph(rng: random.Random) -> tuple[Graph, Tensor]:
    """A random graph that runs, in float64, and an input."""
    torch.manual_seed(rng.randrange(2**31))
    channels = rng.choice((1, 2, 3, 4, 6, 8))
    shape = (rng.choice((1, 1, 2, 3)), channels, rng.randint(1, 12), rng.randint(1, 12))
    x = torch.randn(shape, dtype=torch.float64)
    layers: list[nn.Module] = []
    steps: list[tuple[str, int, tuple[int, ...]]] = []
    values = [x]
    for _ in range(rng.randint(2, 9)):
        name, layer, inputs, made = _step(rng, values, len(layers), layers)
        module = [*layers, made][layer] if made is not None else (layers[layer] if layers else nn.Identity())
        try:
            with torch.no_grad():
                given = [values[index] for index in inputs]
                value = module.eval()(given[0]) if name == "layer" else _OPERATIONS[name](*given)
        except (RuntimeError, IndexError, ValueError):  # a shape that does not fit
            continue
        if value.numel() == 0 or value.numel() > 20_000:
            continue
        layers += [made] if made is not None else []
        steps.append((name, layer, inputs))
        values.append(value)
    return Graph(layers or [nn.Identity()], steps or [("relu", 0, (0,))]).eval(), x


def _step(
    rng: random.Random, values: list[Tensor], count: int, layers: list[nn.Module]
) -> tuple[str, int, tuple[int, ...], nn.Module | None]:
    """Operation, layer, inputs, and the layer if it is a new one."""
    place = rng.randrange(max(0, len(values) - 3), len(values))
    kind = rng.random()
    if kind < 0.5:
        return "layer", count, (place,), _conv(rng, values[place].shape[1])
    if kind < 0.6:
        return "layer", count, (place,), nn.BatchNorm2d(values[place].shape[1], dtype=torch.float64)
    if kind < 0.7 and layers:
        return "layer", rng.randrange(count), (place,), None  # shared
    name = rng.choice(sorted(_OPERATIONS))
    inputs = (place, rng.randrange(len(values))) if name in ("add", "concat") else (place,)
    return name, 0, inputs, None


def _conv(rng: random.Random, channels: int) -> nn.Module:
    groups = rng.choice([1, 1, 1, *(g for g in (2, 3, channels) if channels % g == 0)])
    kernel = (rng.choice((1, 2, 3, 3, 3, 5)), rng.choice((1, 2, 3, 3, 3, 5)))
    padding: Any = rng.choice(((0, 0), (1, 1), (kernel[0] // 2, kernel[1] // 2), (2, 0), "same", "valid"))
    stride = (1, 1) if padding == "same" else (rng.choice((1, 1, 2, 3)), rng.choice((1, 1, 2)))
    return nn.Conv2d(
        channels,
        groups * rng.choice((1, 2, 3, 4)),
        kernel,
        stride,
        padding,
        dilation=rng.choice((1, 1, 1, 2)),
        groups=groups,
        bias=rng.random() < 0.5,
        padding_mode=rng.choice(_MODES),
        dtype=torch.float64,
    )


def check(rng: random.Random) -> None:
    """One graph: same output at full rank, every conv accounted for, costs as predicted, state dict round trip."""
    model, x = graph(rng)
    with _on_real_tensors() if rng.random() < 0.8 else contextlib.nullcontext():  # fake ones cost half of a case
        _check(rng, model, x)


def _on_real_tensors() -> contextlib.AbstractContextManager[object]:
    """Have networks captured as those are that look at values."""
    return mock.patch.object(capture, "FakeTensorMode", side_effect=RuntimeError)


def _check(rng: random.Random, model: Graph, x: Tensor) -> None:
    kind = rng.choice((cs.DepthwiseSeparable, cs.Blueprint))
    form: cs.Form = kind(rank=cs.Energy(1.0)) if rng.random() < 0.8 else cs.BlueprintSubspace(cs.Energy(1.0), width=1.0)
    made = cs.plan(model, x, forms=[form], policy=cs.select.everything(), allow_growth=True)
    converted, plan = operate(model, made, x)
    given = cs.Example.of(x)
    for one, two in zip(outputs(model, given), outputs(converted, given), strict=True):
        torch.testing.assert_close(two, one, rtol=1e-7, atol=1e-8)
    convs = {name for name, module in model.named_modules(remove_duplicate=False) if isinstance(module, nn.Conv2d)}
    assert convs <= {name for step in plan.steps for name in step.site.names}
    assert all(skip.reason for skip in plan.skipped)
    after = cs.capture(converted, x).cost
    assert (after.params, after.macs) == (plan.params_after, plan.macs_after)
    cs.rebuild(model, cs.Plan.from_dict(plan.to_dict())).load_state_dict(converted.state_dict())
