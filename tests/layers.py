"""Generated convs: a hypothesis strategy over everything a Conv2d can be."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

WINDOWS = st.tuples(st.integers(1, 5), st.integers(1, 5)).filter(lambda size: size[0] * size[1] > 1)
PAIRS = st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def convs(draw: st.DrawFn, windows: st.SearchStrategy[tuple[int, int]] = WINDOWS) -> tuple[nn.Conv2d, Tensor]:
    """A float64 conv that is no depthwise one, by default no 1x1 one either, and an input that fits it."""
    groups = draw(st.sampled_from((1, 1, 1, 2, 3)))
    inputs = groups * draw(st.integers(1 if groups == 1 else 2, 5))
    outputs = groups * draw(st.integers(1, 5))
    kernel, stride, dilation = draw(windows), draw(PAIRS), draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    mode = draw(st.sampled_from(("zeros", "reflect", "replicate", "circular")))
    padding: Any = draw(st.one_of(st.tuples(st.integers(0, 3), st.integers(0, 3)), st.sampled_from(("same", "valid"))))
    if padding == "same":
        stride = (1, 1)
    height, width = (dilation[i] * (kernel[i] - 1) + 4 + draw(st.integers(0, 4)) for i in (0, 1))
    torch.manual_seed(draw(st.integers(0, 2**16)))
    conv = nn.Conv2d(
        inputs,
        outputs,
        kernel,
        stride,
        padding,
        dilation,
        groups,
        bias=draw(st.booleans()),
        padding_mode=mode,
        dtype=torch.float64,
    )
    return conv, torch.randn(draw(st.integers(1, 2)), inputs, height, width, dtype=torch.float64)
