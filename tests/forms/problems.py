"""Made-up least-squares problems."""

from __future__ import annotations

import torch
from torch import Tensor

from convsurgeon.forms.covariance import Whole
from convsurgeon.forms.leastsquares import Normal


def problem(outputs: int = 6, channels: int = 5, taps: int = 9, rows: int = 400) -> tuple[Normal, Tensor, Tensor]:
    """Normal equations of a random regression in a random metric, with its patches and targets."""
    x = torch.randn(rows, channels * taps, dtype=torch.float64) @ torch.randn(
        channels * taps, channels * taps, dtype=torch.float64
    )
    y = x @ torch.randn(channels * taps, outputs, dtype=torch.float64) + torch.randn(rows, outputs, dtype=torch.float64)
    root = torch.randn(outputs, outputs, dtype=torch.float64)
    return Normal(Whole(x.T @ x / rows), (y.T @ x / rows).reshape(outputs, channels, taps), root @ root.T), x, y
