"""The network that the files beside this one were made of, by convsurgeon as it was before its rooms."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Kept(nn.Module):
    """Six convs, one of them strided, one grouped, one the stem."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.layers = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1, bias=False),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1, groups=2),
            nn.ReLU(),
            nn.Conv2d(16, 16, (3, 1), padding=(1, 0)),
            nn.ReLU(),
            nn.Conv2d(16, 8, 5, padding=2),
            nn.ReLU(),
        )
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 16, 16) to (N, 5)."""
        return self.head(self.layers(self.norm(self.stem(x)).relu()).mean((2, 3)))


def kept() -> Kept:
    """With weights of its own."""
    torch.manual_seed(0)
    return Kept().eval()
