"""The tutorial experiment: a SegNet on generated pictures, dense and light ones, all trained alike from scratch.

    python examples/segment.py [--epochs 30] [--images 1200] [--out segment.png]

Every picture shows discs, squares and triangles, each kind near a colour of its own, on a striped, noisy background;
the network names the class of every pixel. Nothing is downloaded. `Network` is SegNet (Badrinarayanan, Kendall and
Cipolla 2017): a VGG-16 encoder that hands its max-pool indices to a mirrored decoder, here with half the channels.

The light networks are made from the dense one by `convert` with `init="random"`: the same sites, the same shapes, new
weights. `mobile` has batch norm and ReLU between the convs, as MobileNet does; `subspace` is BSConv-S with its
orthonormality loss.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn import functional as F

import convsurgeon as cs

CLASSES = ("background", "disc", "square", "triangle")
SIZE = 32
TINTS = {kind: torch.eye(3)[kind - 1].view(3, 1, 1) - 0.3 for kind in (1, 2, 3)}
"""The mean colour of each class."""
Penalty = Callable[[nn.Module], Tensor]


class Network(nn.Module):
    """SegNet: 26 convs of 3x3; input (N, 3, H, W) with sides that are multiples of 32, output (N, classes, H, W)."""

    def __init__(self, classes: int = len(CLASSES), width: int = 32) -> None:
        super().__init__()
        w = width
        down = [[w] * 2, [2 * w] * 2, [4 * w] * 3, [8 * w] * 3, [8 * w] * 3]
        up = [[8 * w] * 3, [8 * w, 8 * w, 4 * w], [4 * w, 4 * w, 2 * w], [2 * w, w], [w]]
        self.encoder = nn.ModuleList(map(stack, (3, w, 2 * w, 4 * w, 8 * w), down))
        self.decoder = nn.ModuleList(map(stack, (8 * w, 8 * w, 4 * w, 2 * w, w), up))
        self.classifier = nn.Conv2d(w, classes, 3, padding=1)
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.unpool = nn.MaxUnpool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of every pixel."""
        places = []
        for stage in self.encoder:
            x, indices = self.pool(stage(x))
            places.append(indices)
        for stage, indices in zip(self.decoder, reversed(places), strict=True):
            x = stage(self.unpool(x, indices))
        logits: Tensor = self.classifier(x)
        return logits


def stack(inputs: int, widths: list[int]) -> nn.Sequential:
    """Return convs, each with batch norm and ReLU."""
    layers: list[nn.Module] = []
    for outputs in widths:
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
        inputs = outputs
    return nn.Sequential(*layers)


def pictures(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return pictures (count, 3, 32, 32) in about [-1, 1] and the class of every pixel (count, 32, 32)."""
    draw = torch.Generator().manual_seed(seed)
    made = [picture(draw) for _ in range(count)]
    return torch.stack([image for image, _ in made]), torch.stack([labels for _, labels in made])


def picture(draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return one picture and its labels: one to three shapes, later ones in front."""

    def number(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=draw))

    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    stripes = torch.sin((x * number(-1, 1) + y * number(-1, 1)) * number(0.1, 0.6))
    image = colour(draw) + 0.25 * stripes
    labels = torch.zeros(SIZE, SIZE, dtype=torch.long)
    for _ in range(int(number(1, 4))):
        kind, radius = int(number(1, 4)), number(4, 9)
        across, down = x - number(6, SIZE - 6), y - number(6, SIZE - 6)
        turn = torch.tensor(number(0, 6.28))
        u, v = across * turn.cos() + down * turn.sin(), down * turn.cos() - across * turn.sin()
        inside = {
            1: u**2 + v**2 < radius**2,
            2: (u.abs() < 0.85 * radius) & (v.abs() < 0.85 * radius),
            3: (v < 0.6 * radius) & (v > -radius + 1.7 * u.abs()),
        }[kind]
        image = torch.where(inside, TINTS[kind] + 0.7 * colour(draw) + 0.15 * stripes.T, image)
        labels = torch.where(inside, kind, labels)
    return image + 0.15 * torch.randn(3, SIZE, SIZE, generator=draw), labels


def colour(draw: torch.Generator) -> Tensor:
    """Return a random colour, (3, 1, 1) in [-1, 1]."""
    return 2 * torch.rand(3, 1, 1, generator=draw) - 1


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int, penalty: Penalty) -> None:
    """Train by Adam with a one-cycle learning rate up to 2e-3, batches of 16, mirrored at random."""
    model.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    steps = epochs * (len(images) // 16)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    chance = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for numbers in torch.randperm(len(images), generator=chance).split(16)[: len(images) // 16]:
            batch, wanted = images[numbers], labels[numbers]
            if torch.rand((), generator=chance) < 0.5:
                batch, wanted = batch.flip(3), wanted.flip(2)
            loss = F.cross_entropy(model(batch), wanted) + penalty(model)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def answers(model: nn.Module, images: Tensor) -> Tensor:
    """Return the class of every pixel, as the network predicts it."""
    model.eval()
    return torch.cat([model(part).argmax(1) for part in images.split(100)])


def scores(found: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return pixel accuracy, and the mean over the classes of intersection over union, in percent."""
    unions = [((found == kind) | (labels == kind)).sum() for kind in range(len(CLASSES))]
    both = [((found == kind) & (labels == kind)).sum() for kind in range(len(CLASSES))]
    shares = [float(one) / max(1.0, float(all_)) for one, all_ in zip(both, unions, strict=True)]
    return 100 * float((found == labels).double().mean()), 100 * sum(shares) / len(shares)


def lighter(dense: nn.Module, form: cs.Form) -> cs.Result:
    """Return the same architecture with other convs, with new weights."""
    torch.manual_seed(0)
    return cs.convert(
        dense,
        torch.zeros(1, 3, SIZE, SIZE),
        forms=[form],
        policy=~cs.select.stem() & ~cs.select.named("classifier"),
        calibration=False,
    )


def draw(path: str, images: Tensor, labels: Tensor, found: dict[str, Tensor], rows: int = 4) -> None:
    """Draw pictures, truth and answers side by side."""
    from matplotlib.figure import Figure

    columns = {"picture": images, "truth": labels, **found}
    figure = Figure(figsize=(1.6 * len(columns), 1.6 * rows + 0.3), layout="constrained")
    for row in range(rows):
        for column, (name, values) in enumerate(columns.items()):
            axes = figure.add_subplot(rows, len(columns), row * len(columns) + column + 1)
            if values.dim() == 4:
                axes.imshow((values[row].permute(1, 2, 0) / 2 + 0.5).clamp(0, 1))
            else:
                axes.imshow(values[row], vmin=0, vmax=len(CLASSES) - 1, cmap="viridis", interpolation="nearest")
            axes.set_axis_off()
            if row == 0:
                axes.set_title(name, fontsize=9)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Train all networks alike and print their scores."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--images", type=int, default=1200)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--only", nargs="+", help="of dense, separable, mobile, blueprint, subspace")
    parser.add_argument("--out", default="segment.png", help="needs matplotlib")
    options = parser.parse_args()
    images, labels = pictures(options.images, seed=0)
    test_images, test_labels = pictures(600, seed=1)
    torch.manual_seed(0)
    dense = Network(width=options.width)
    fresh = {"init": "random", "norm": "batch", "activation": "relu"}
    subspace = cs.BlueprintSubspace(rank=1, width=0.25, init="random")
    networks: dict[str, tuple[nn.Module, Penalty]] = {
        "dense": (dense, lambda _: torch.zeros(())),
        "separable": (lighter(dense, cs.DepthwiseSeparable(rank=1, init="random")).model, lambda _: torch.zeros(())),
        "mobile": (lighter(dense, cs.DepthwiseSeparable(rank=1, **fresh)).model, lambda _: torch.zeros(())),
        "blueprint": (lighter(dense, cs.Blueprint(rank=1, init="random")).model, lambda _: torch.zeros(())),
        "subspace": (lighter(dense, subspace).model, lambda model: 0.1 * subspace.regularization(model)),
    }
    rows, found = [], {}
    for name in options.only or networks:
        model, penalty = networks[name]
        began = time.perf_counter()
        train(model, images, labels, options.epochs, penalty)
        minutes = (time.perf_counter() - began) / 60
        found[name] = answers(model, test_images)
        cost = cs.capture(model, torch.zeros(1, 3, SIZE, SIZE)).cost
        rows.append((name, cost.params, cost.macs, *scores(found[name], test_labels), minutes))
        print(*rows[-1], flush=True)
    headers = ["network", "parameters", "MACs", "pixels right (%)", "mean IoU (%)", "minutes"]
    print(tabulate(rows, headers, tablefmt="github", floatfmt=(None, ",d", ",d", ".2f", ".2f", ".1f"), intfmt=","))
    draw(options.out, test_images, test_labels, found)


if __name__ == "__main__":
    main()
