"""Three convs in a row, and the milliseconds that tables made up for them begin with."""

from __future__ import annotations

import torch
from torch import nn

DENSE = {"0": 2.0, "2": 3.0, "4": 4.0}


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(8, 24, 3, padding=1), nn.ReLU(),
        nn.Conv2d(24, 24, 3, padding=1), nn.ReLU(),
        nn.Conv2d(24, 32, 3, padding=1),
    ).eval()  # fmt: skip
