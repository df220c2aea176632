"""Small networks of many kinds, each trained from a seed in about a minute of one core on images with known answers.

Weights are kept in a folder of the system's temporary ones; `python -m tests.benchmarks.small [NAME ...]` trains those
that are not there.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from tests.benchmarks import metrics, scenes
from tests.benchmarks.awkward import Distilled, Twice, UNet
from tests.benchmarks.metrics import Metric

KEPT = Path(tempfile.gettempdir()) / "convsurgeon-benchmarks-1"
"""Where weights are kept; the number changes with how they are made."""
_POOL = 2000


@dataclass(frozen=True)
class Small:
    """How a network is made and trained, the side of its images, and what its user would measure."""

    build: Callable[[], nn.Module]
    scene: Callable[[int, int, Generator], scenes.Scene]
    side: int
    loss: Callable[[Tensor, Tensor], Tensor]
    metric: Metric
    steps: int = 600
    rate: float = 3e-3
    batch: int = 32

    def drawn(self, count: int, seed: int) -> scenes.Scene:
        """Return that many images and their answers; seeds from 1000 on are of the test."""
        return self.scene(count, self.side, Generator().manual_seed(seed))


def unit(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Return conv, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


def body(*widths: int, strided: tuple[int, ...] = ()) -> nn.Sequential:
    """Return units from each width to the next, those of the given numbers with stride 2."""
    pairs = itertools.pairwise(widths)
    return nn.Sequential(*(unit(a, b, 2 if index in strided else 1) for index, (a, b) in enumerate(pairs)))


def normed(model: nn.Module) -> nn.Module:
    """Put a batch norm between every conv and its ReLU."""
    for part in list(model.modules()):
        if isinstance(part, nn.Sequential) and [type(one) for one in part] == [nn.Conv2d, nn.ReLU]:
            part.insert(1, nn.BatchNorm2d(part[0].out_channels))  # type: ignore[arg-type]
    return model


class Pooled(nn.Module):
    """A body, the mean over the map, and a linear layer."""

    def __init__(self, body: nn.Module, channels: int, outputs: int) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(channels, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


class Words(nn.Module):
    """Convs along time over the bands of log-mel features, the mean over time, and a linear layer."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
            conv = nn.Conv1d(inputs, outputs, 9, 1 + index % 2, 4, bias=False)
            layers += [conv, nn.BatchNorm1d(outputs), nn.ReLU(inplace=True)]
        self.body, self.head = nn.Sequential(*layers), nn.Linear(widths[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean(2))


class Points(nn.Module):
    """Coordinates in pixels, regressed from a whole map."""

    def __init__(self, body: nn.Module, features: int, side: int) -> None:
        super().__init__()
        self.body, self.head, self.side = body, nn.Linear(features, 10), side

    def forward(self, x: Tensor) -> Tensor:
        return self.side * (0.5 + self.head(self.body(x).flatten(1)).reshape(-1, 5, 2))


class Detector(nn.Module):
    """A grid of boxes in pixels and scores of three classes in one output, (N, 7, cells), as YOLO heads give them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = body(3, width, width, 2 * width, 2 * width, 4 * width, 4 * width, 4 * width, strided=(0, 2, 4))
        self.head = nn.Conv2d(4 * width, 7, 1)

    def forward(self, x: Tensor) -> Tensor:
        raw = self.head(self.body(x))
        y, x = (torch.arange(size, dtype=raw.dtype, device=raw.device) for size in raw.shape[2:])
        left, top = raw[:, :1].sigmoid() * 2 - 0.5 + x, raw[:, 1:2].sigmoid() * 2 - 0.5 + y[:, None]
        sides = raw[:, 2:4].clamp(-4, 4).exp()
        return torch.cat([scenes.CELL * left, scenes.CELL * top, 16 * sides, raw[:, 4:].sigmoid()], 1).flatten(2)


def _coder() -> nn.Module:
    """Return an autoencoder of 32x32 pixels by 8 maps of 8x8."""
    down = [*body(3, 32, 32, 64, 64, strided=(1, 3)), nn.Conv2d(64, 8, 3, padding=1)]
    up = [*body(8, 64, 64), nn.Upsample(scale_factor=2), *body(64, 32), nn.Upsample(scale_factor=2), *body(32, 32)]
    return nn.Sequential(*down, *up, nn.Conv2d(32, 3, 3, padding=1))


def _decoder() -> nn.Module:
    """Return a decoder of transposed convs, 1x1 to 32x32."""
    layers: list[nn.Module] = []
    for inputs, outputs, kernel in ((16, 96, 4), (96, 64, 4), (64, 48, 4), (48, 32, 4)):
        layers.append(nn.ConvTranspose2d(inputs, outputs, kernel, 2 if layers else 1, 1 if layers else 0, bias=False))
        layers += [nn.BatchNorm2d(outputs), nn.ReLU(inplace=True), *body(outputs, outputs)]
    return nn.Sequential(*layers, nn.Conv2d(32, 3, 3, padding=1))


def _heat_net() -> nn.Module:
    """Return a net of maps at half the resolution."""
    down = body(3, 16, 32, 32, 64, 64, strided=(0, 1, 3))
    up = [nn.Upsample(scale_factor=2, mode="bilinear"), *body(64, 32), nn.Upsample(scale_factor=2, mode="bilinear")]
    return nn.Sequential(*down, *up, *body(32, 32), nn.Conv2d(32, 5, 1))


class Distance(nn.Module):
    """The exponential of a U-Net: distances."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).exp()


def _boxes_loss(found: Tensor, answer: Tensor) -> Tensor:
    there = answer[:, 4:].amax(1, keepdim=True)
    off = ((found[:, :4] - answer[:, :4]).abs() * there).sum() / there.sum() / 4
    scores = F.binary_cross_entropy(found[:, 4:].clamp(1e-6, 1 - 1e-6), answer[:, 4:], reduction="sum")
    return off + 2 * scores / there.sum()


def _mask_loss(found: Tensor, answer: Tensor) -> Tensor:
    hit = found.sigmoid()
    overlap = 2 * (hit * answer).sum() / (hit.sum() + answer.sum() + 1)
    return F.binary_cross_entropy_with_logits(found, answer) + 0.3 * (1 - overlap)


def _points_loss(found: Tensor, answer: Tensor) -> Tensor:
    return F.smooth_l1_loss(found, answer, beta=2.0)


def _heat_loss(found: Tensor, answer: Tensor) -> Tensor:
    return 50 * F.mse_loss(found, answer)


def _twice() -> nn.Module:
    made = Twice()
    made.second.head = nn.Conv2d(8, 1, 1)
    return normed(made)


_SIGNS = {"scene": scenes.glyphs, "side": 32, "loss": F.cross_entropy, "metric": metrics.TOP1}
NETS: dict[str, Small] = {
    "lines u-net": Small(
        lambda: normed(UNet((8, 16, 32, 64), 3, 1)), scenes.lines, 48, _mask_loss, metrics.MASK, 250, batch=16
    ),
    "lines double u-net": Small(_twice, scenes.lines, 48, _mask_loss, metrics.MASK, 200, batch=16),
    "shapes u-net": Small(
        lambda: normed(UNet((16, 32, 64), 3, 4)), scenes.shapes, 48, F.cross_entropy, metrics.CLASSES, 200, batch=16
    ),
    "detector": Small(lambda: Detector(16), scenes.boxes, 64, _boxes_loss, metrics.BOXES, 700),
    "heat maps": Small(_heat_net, scenes.heat, 48, _heat_loss, metrics.PEAKS, 400),
    "coordinates": Small(
        lambda: Points(body(3, 16, 32, 32, 64, 64, 32, strided=(0, 1, 3, 5)), 512, 64),
        scenes.faces, 64, _points_loss, metrics.POINTS,
    ),
    "depth": Small(
        lambda: Distance(normed(UNet((16, 32, 64), 3, 1))), scenes.depths, 48, F.l1_loss, metrics.DEPTH, 200, batch=16
    ),
    "autoencoder": Small(_coder, scenes.pictures, 32, F.mse_loss, metrics.PSNR, 250),
    "two classes": Small(
        lambda: Pooled(body(3, 16, 32, 32, 64, 64, strided=(0, 1, 3)), 64, 1),
        scenes.faint, 64, F.binary_cross_entropy_with_logits, metrics.AUC, 500,
    ),
    "100 classes": Small(lambda: Pooled(body(3, 32, 48, 64, 64, 96, 96, strided=(1, 2, 4)), 96, 100), **_SIGNS),
    "100 classes, wide": Small(
        lambda: Pooled(body(3, 64, 128, 128, 256, 256, strided=(0, 1, 3)), 256, 100), **_SIGNS, steps=400
    ),
    "keywords": Small(lambda: Words(40, 64, 64, 96, 96, 128), scenes.words, 96, F.cross_entropy, metrics.TOP1, 400),
    "super-resolution 50": Small(lambda: Distilled(4), scenes.halved, 24, F.l1_loss, metrics.PSNR, 200, 1e-3, 8),
    "decoder": Small(_decoder, scenes.rendered, 32, F.mse_loss, metrics.PSNR, 300),
}  # fmt: skip
"""The plain one for each kind of answer that networks give."""


def trained(name: str) -> nn.Module:
    """Return a network of `NETS` in eval mode, trained now if its weights are not kept."""
    path = KEPT / f"{name}.safetensors"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        save_file(_train(NETS[name]).state_dict(), path)
    model = NETS[name].build()
    model.load_state_dict(load_file(path))
    return model.eval()


def _train(net: Small) -> nn.Module:
    """Train with Adam and a rate that rises and falls; draws are fixed."""
    torch.manual_seed(0)
    model, order = net.build().train(), Generator().manual_seed(0)
    pool, answers = net.drawn(_POOL, 1)
    optimiser = torch.optim.AdamW(model.parameters(), net.rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, net.rate, net.steps)
    for _ in range(net.steps):
        chosen = torch.randint(len(pool), (net.batch,), generator=order)
        loss = net.loss(model(pool[chosen]), answers[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return model


if __name__ == "__main__":
    torch.set_num_threads(1)
    for wanted in sys.argv[1:] or NETS:
        started = time.process_time()
        network = trained(wanted)
        spent = time.process_time() - started
        with torch.inference_mode():
            images, truth = NETS[wanted].drawn(500, 1000)
            print(f"{wanted}: {NETS[wanted].metric.of(network(images), truth):.2f}, {spent:.0f} s", flush=True)
