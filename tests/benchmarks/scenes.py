"""Images with known answers, drawn from a generator: what the small networks of `small` are trained and judged on.

A scene is a function of a number of images, their side and a generator; it returns inputs and answers.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from tests.benchmarks.popular import crops
from tests.networks import DATA

Scene = tuple[Tensor, Tensor]
CELL = 8
"""Pixels of a cell of the detector's grid."""
_FACE = torch.tensor([[-0.45, -0.35], [0.45, -0.35], [0.0, 0.1], [-0.35, 0.5], [0.35, 0.5]])
_VOWELS = torch.tensor([[9.0, 27.0], [13.0, 22.0], [8.0, 20.0], [15.0, 29.0]])
_WORDS = torch.tensor(
    [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0], [0, 1, 3], [0, 3, 1], [3, 0, 1], [3, 1, 0]]
)
"""Bands of the formants of each vowel, and the vowels of each word."""
_INK = torch.tensor([[0.0, 0.1, 0.9], [0.0, 0.6, 0.1], [0.9, 0.8, 0.1], [0.8, 0.0, 0.2], [0.1, 0.0, 0.1]])


def lines(count: int, side: int, draw: Generator) -> Scene:
    """Return three faint curves, two pixels wide, on texture; the answer is their mask."""
    image, (x, y) = texture(count, side, draw), _grid(side)
    mask = torch.zeros(count, 1, side, side)
    for _ in range(3):
        angle, offset, bend, ink = (
            _uniform(count, draw, *span) for span in ((0, 6.3), (-0.35, 0.35), (-1, 1), (-1, 1))
        )
        along, across = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
        hit = ((across - offset - bend * along.square()).abs() < 1.2 / side).float()
        image = image + hit * (0.12 * ink + 0.18 * ink.sign())
        mask = torch.maximum(mask, hit)
    return image, mask


def objects(count: int, side: int, draw: Generator) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return discs, squares and diamonds on texture, the class of every pixel (0: none), and the rows of each object.

    A row is kind, centre and half the side in pixels.
    """
    image, (x, y) = texture(count, side, draw), _grid(side)
    classes, rows = torch.zeros(count, 1, side, side), []
    for _ in range(3):
        kind = torch.randint(3, (count, 1, 1, 1), generator=draw)
        left, top, radius = (_uniform(count, draw, *span) for span in ((-0.4, 0.4), (-0.4, 0.4), (0.07, 0.18)))
        over, down = (x - left).abs(), (y - top).abs()
        far = torch.where(kind == 0, torch.hypot(over, down), torch.maximum(over, down))
        far = torch.where(kind == 2, over + down, far)
        inside = far < radius
        image = torch.where(inside, 0.35 * image + 0.65 * torch.rand(count, 3, 1, 1, generator=draw), image)
        classes = torch.where(inside, kind + 1.0, classes)
        rows.append(torch.cat([kind.float(), (left + 0.5) * side, (top + 0.5) * side, radius * side], 1)[..., 0, 0])
    return image, classes, rows


def shapes(count: int, side: int, draw: Generator) -> Scene:
    """Return objects with the class of every pixel, 0 to 3."""
    image, classes, _ = objects(count, side, draw)
    return image, classes[:, 0].long()


def boxes(count: int, side: int, draw: Generator) -> Scene:
    """Return objects with seven rows a cell: box (centre, width, height in pixels) and a score for each kind."""
    image, _, rows = objects(count, side, draw)
    cells = side // CELL
    answer = torch.zeros(count, 7, cells * cells)
    for kind, left, top, radius in (row.unbind(1) for row in rows):
        cell = (top // CELL).long() * cells + (left // CELL).long()
        answer[torch.arange(count), :, cell] = torch.stack([left, top, 2 * radius, 2 * radius, *[0 * left] * 3], 1)
        answer[torch.arange(count), 4 + kind.long(), cell] = 1
    return image, answer


def faces(count: int, side: int, draw: Generator) -> Scene:
    """Return faces of five coloured points on texture; the answer is the points' x and y in pixels, (N, 5, 2)."""
    image, (x, y) = texture(count, side, draw), _grid(side)
    centre, size = _uniform(count, draw, -0.2, 0.2, 2), _uniform(count, draw, 0.18, 0.28)
    turn, skin = _uniform(count, draw, -0.5, 0.5), torch.rand(count, 3, 1, 1, generator=draw)
    inside = torch.hypot(x - centre[:, :1], y - centre[:, 1:]) < 1.2 * size
    image = torch.where(inside, 0.4 * image + 0.6 * skin, image)
    turned = torch.stack([torch.cat([turn.cos(), -turn.sin()], 1), torch.cat([turn.sin(), turn.cos()], 1)], 1)
    points = size[:, 0] * (_FACE + 0.05 * torch.randn(count, 5, 2, generator=draw)) @ turned[..., 0, 0].mT
    points = points + centre[..., 0, 0][:, None]
    for index in range(5):
        far = torch.hypot(x - points[:, index, 0, None, None, None], y - points[:, index, 1, None, None, None])
        image = torch.lerp(image, _INK[index].view(1, 3, 1, 1).expand_as(image), 0.8 * torch.exp(-(far * 25).square()))
    return image, (points + 0.5) * side


def heat(count: int, side: int, draw: Generator) -> Scene:
    """Return faces with a map for each point at half the resolution: a bump of 0 to 1."""
    image, points = faces(count, side, draw)
    x, y = (side / 2 * (axis + 0.5) for axis in _grid(side // 2))
    far = torch.hypot(x - points[..., 0, None, None] / 2, y - points[..., 1, None, None] / 2)
    return image, torch.exp(-(far / 1.5).square())


def depths(count: int, side: int, draw: Generator) -> Scene:
    """Return balls over a floor in fog; the answer is the distance of every pixel."""
    x, y = _grid(side)
    slope, fog = _uniform(count, draw, 4, 10), torch.rand(count, 3, 1, 1, generator=draw)
    depth, image = 1.5 + slope * (0.5 - y) + 0 * x, texture(count, side, draw)
    for far in torch.linspace(7, 1.5, 5):
        distance, left = far + _uniform(count, draw, 0, 1), _uniform(count, draw, -0.5, 0.5)
        radius = 0.35 / distance
        over, down = x - left, y - _uniform(count, draw, -0.3, 0.3)
        inside = (torch.hypot(over, down) < radius) & (distance < depth)
        colour = torch.rand(count, 3, 1, 1, generator=draw) * (0.8 - 0.5 * down / radius)
        image, depth = torch.where(inside, colour, image), torch.where(inside, distance, depth)
    seen = torch.exp(-0.2 * depth)
    return image * seen + fog * (1 - seen) + 0.02 * torch.randn(image.shape, generator=draw), depth


def faint(count: int, side: int, draw: Generator) -> Scene:
    """Return texture, in half of the images with a faint ring; the answer is whether there is one, (N, 1)."""
    image, (x, y) = texture(count, side, draw), _grid(side)
    there = torch.randint(2, (count, 1, 1, 1), generator=draw)
    left, top, radius = (_uniform(count, draw, *span) for span in ((-0.25, 0.25), (-0.25, 0.25), (0.1, 0.22)))
    ring = (torch.hypot(x - left, y - top) - radius).abs() < 0.03
    return image + _uniform(count, draw, 0.03, 0.09) * (ring & (there > 0)), there[..., 0, 0].float()


def glyphs(count: int, side: int, draw: Generator) -> Scene:
    """Return one of a hundred signs, turned, scaled and moved, on texture; the answer is which."""
    known = F.interpolate(torch.rand(100, 1, 5, 5, generator=Generator().manual_seed(100)), (20, 20), mode="bicubic")
    kind = torch.randint(100, (count,), generator=draw)
    scale, turn = _uniform(count, draw, 1.2, 1.8)[..., 0, 0, 0], _uniform(count, draw, -0.35, 0.35)[..., 0, 0, 0]
    move = _uniform(count, draw, -0.3, 0.3, 2)[..., 0, 0]
    rows = [torch.stack([turn.cos(), -turn.sin()], 1), torch.stack([turn.sin(), turn.cos()], 1)]
    warp = torch.cat([scale[:, None, None] * torch.stack(rows, 1), move[..., None]], 2)
    there = F.grid_sample(
        (known[kind] > 0.5).float(), F.affine_grid(warp, [count, 1, side, side], False), align_corners=False
    )
    ink = torch.rand(count, 3, 1, 1, generator=draw) - 0.5
    return texture(count, side, draw) + there * (0.3 * ink + 0.25 * ink.sign()), kind


def rendered(count: int, side: int, draw: Generator) -> Scene:
    """Return codes of 16 numbers, (N, 16, 1, 1), and the picture that each stands for."""
    code, (x, y) = 2 * torch.rand(count, 16, 1, 1, generator=draw) - 1, _grid(side)
    near = [code[:, index : index + 1] for index in range(16)]
    image = 0.4 + 0.2 * torch.cat(near[:3], 1) * x + 0.3 * torch.cat(near[3:6], 1) * y
    for start in (6, 11):
        left, top, radius = 0.3 * near[start], 0.3 * near[start + 1], 0.15 + 0.05 * near[start + 2]
        inside = torch.sigmoid(60 * (radius - torch.hypot(x - left, y - top)))
        image = image + inside * 0.4 * torch.cat([near[start + 3], near[start + 4], -near[start + 3]], 1)
    return code, image


def pictures(count: int, _side: int, draw: Generator) -> Scene:
    """Return CIFAR-10 images as their own answers; seeds from 1000 on take those of the test."""
    images = _cifar("test" if draw.initial_seed() >= 1000 else "train")
    chosen = images[torch.randperm(len(images), generator=draw)[:count]].permute(0, 3, 1, 2).float() / 255
    return chosen, chosen


def halved(count: int, side: int, draw: Generator) -> Scene:
    """Return photographs at half their size, and whole; seeds from 1000 on take other photographs."""
    whole = crops(count, 2 * side, draw.initial_seed())
    return F.interpolate(whole, scale_factor=0.5, mode="bicubic", antialias=True), whole


def texture(count: int, side: int, draw: Generator) -> Tensor:
    """Return coloured noise of three scales, mostly in [0, 1]."""
    made = torch.zeros(count, 3, side, side)
    for size, part in ((4, 0.5), (side // 4, 0.3), (side, 0.2)):
        rough = torch.rand(count, 3, size, size, generator=draw)
        made += part * F.interpolate(rough, (side, side), mode="bilinear")
    return made


def _grid(side: int) -> tuple[Tensor, Tensor]:
    """Return x (1, side) and y (side, 1) of the pixels, from -0.5 to 0.5."""
    axis = (torch.arange(side) + 0.5) / side - 0.5
    return axis[None], axis[:, None]


def _uniform(count: int, draw: Generator, low: float, high: float, channels: int = 1) -> Tensor:
    return low + (high - low) * torch.rand(count, channels, 1, 1, generator=draw)


@cache
def _cifar(split: str) -> Tensor:
    with np.load(DATA / "cifar10" / "cifar10.npz") as file:
        return torch.from_numpy(file[f"x_{split}"])


def words(count: int, side: int, draw: Generator) -> Scene:
    """Return log-mel features (N, 40 bands, side frames) of one of ten words in noise, and its number.

    A word is three vowels of four, one after the other. A vowel is two formants; a speaker shifts and stretches both,
    and says the word early or late, fast or slowly.
    """
    word = torch.randint(len(_WORDS), (count,), generator=draw)
    start, length = _uniform(count, draw, 0.05, 0.35)[..., 0], _uniform(count, draw, 0.4, 0.6)[..., 0]
    time = torch.linspace(0, 1, side)
    centre = (torch.arange(3) + 0.5) / 3 + 0.07 * torch.randn(count, 1, 3, generator=draw)
    near = -((time.view(1, side, 1) - start - length * centre) / (0.2 * length)).square()
    formants = torch.einsum("nts,nsf->ntf", near.softmax(2), _VOWELS[_WORDS[word]])
    formants = formants * _uniform(count, draw, 0.9, 1.1)[..., 0] + 2 * torch.randn(count, 1, 2, generator=draw)
    bands = torch.arange(40.0).view(1, 40, 1, 1)
    voiced = ((time - start[:, :, 0]) * 40).sigmoid() * ((start + length)[:, :, 0] - time).mul(40).sigmoid()
    ripple = 1 + 0.5 * torch.sin(
        bands[..., 0] * _uniform(count, draw, 1, 3)[..., 0] + 6 * torch.rand(count, 1, 1, generator=draw)
    )
    energy = torch.exp(-((bands - formants[:, None]) / 2).square()).sum(3) * voiced[:, None] * ripple
    hum = torch.exp(0.7 * torch.randn(count, 40, 1, generator=draw) + torch.randn(count, 40, side, generator=draw))
    return torch.log(0.02 + energy + _uniform(count, draw, 0.1, 0.6)[..., 0] * hum), word
