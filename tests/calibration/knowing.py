"""A network for the command line whose batch norms know something."""

from __future__ import annotations

import torch
from torch import nn


def knowing() -> nn.Module:
    """Two convs with batch norms that have seen uniform noise."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8, momentum=None), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8, momentum=None)),
    )
    with torch.no_grad():
        model(torch.rand(64, 3, 12, 12))
    return model.eval()
