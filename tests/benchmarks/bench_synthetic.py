"""No images at hand: plans of 0.35 of the MACs from made-up images, beside every other thing to calibrate on.

python tests/benchmarks/bench_synthetic.py [resnet20 resnet56 dncnn vdsr] [--ways made-up ...] [--seeds 0 1 2]

Every conv with 16 channels on both sides, no labels, no training; metrics as in `bench_calibrated.py`. `alone` is CP at
that share of every layer from the weights alone; `noise` white noise; `drawn` the drawn images
before the batch norms have a say; `photos` crops of the 60 photographs; `own` the network's own training images (for
DnCNN and VDSR those are crops of the photographs, with noise or blur). CIFAR networks: 1024 images, the others 200.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import convsurgeon as cs
from convsurgeon.calibration import synthetic
from tests import networks
from tests.benchmarks.bench_calibrated import CASES
from tests.networks import cifar_calibration, normalise, pretrained

WAYS = ("alone", "noise", "drawn", "photos", "own", "made-up")
SHAPES = {"resnet20": (1, 3, 32, 32), "resnet56": (1, 3, 32, 32), "dncnn": (1, 1, 64, 64), "vdsr": (1, 1, 64, 64)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=["resnet20"])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data", type=Path, default=networks.DATA, help="where the networks lie")
    options = parser.parse_args()
    networks.DATA = options.data
    torch.set_num_threads(1)
    rows = []
    for name in options.networks:
        for way in options.ways:
            rows.append((name, way, *_row(name, way, options.seeds)))
            print(*rows[-1], flush=True)
    headers = ["network", "images", "MACs", "dense", "mean", "spread", "seeds", "processor seconds: images", "convert"]
    print(tabulate(rows, headers, tablefmt="pipe", floatfmt=".2f"))


def _row(name: str, way: str, seeds: list[int]) -> tuple[object, ...]:
    model, found, made, spent = pretrained(name), [], 0.0, 0.0
    for seed in seeds[:1] if way == "alone" else seeds:
        start = time.process_time()
        images = _images(name, way, model, seed)
        made += time.process_time() - start
        result = _converted(name, model, images, seed)
        spent += time.process_time() - start
        found.append(CASES[name].metric(result.model))
        print(name, way, seed, found[-1], flush=True)
    spread = statistics.stdev(found) if len(found) > 1 else 0.0
    macs = result.report.after.macs / result.report.before.macs
    listed = ", ".join(f"{value:.2f}" for value in found)
    dense = CASES[name].metric(model)
    return macs, dense, statistics.mean(found), spread, listed, made / len(found), (spent - made) / len(found)


def _converted(name: str, model: nn.Module, images: Tensor | None, seed: int) -> cs.Result:
    example, policy = torch.randn(SHAPES[name], generator=torch.Generator().manual_seed(seed)), cs.min_channels(16)
    if images is not None:
        given = {"calibration": images, "images": len(images), "seed": seed, "progress": False}
        return cs.convert(model, example, policy=policy, budget=cs.Budget(macs=0.35), **given)  # type: ignore[arg-type]
    form = [cs.CP(rank=cs.Share(0.35))]
    return cs.convert(model, example, forms=form, policy=policy, calibration=False, progress=False)


def _images(name: str, way: str, model: nn.Module, seed: int) -> Tensor | None:
    """What is calibrated on; `drawn` is what `made-up` begins with."""
    count, shape = (1024 if name.startswith("resnet") else 200), SHAPES[name]
    generator = torch.Generator().manual_seed(seed)
    if way == "alone":
        return None
    if way == "noise":
        return torch.randn(count, *shape[1:], generator=generator)
    if way == "own":
        return cifar_calibration(count, seed) if name.startswith("resnet") else CASES[name].images(seed)
    if way == "photos":
        return _photos(count, seed) if name.startswith("resnet") else CASES[name].images(seed)
    passes = synthetic.PASSES
    try:
        synthetic.PASSES = passes if way == "made-up" else 0
        made = cs.synthetic_images(model, torch.randn(shape, generator=generator), count, seed, progress=False)
    finally:
        synthetic.PASSES = passes
    assert isinstance(made, Tensor)
    return made


def _photos(count: int, seed: int) -> Tensor:
    """Crops of the photographs, scaled to 32x32."""
    generator = torch.Generator().manual_seed(seed)
    paths = sorted((networks.DATA / "photos").glob("*.jpg"))
    pictures = [torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1) for path in paths]
    return torch.cat([_crop(pictures[index % len(pictures)], generator) for index in range(count)])


def _crop(picture: Tensor, generator: torch.Generator) -> Tensor:
    side = int(torch.randint(64, 257, (), generator=generator))
    top, left = (int(torch.randint(size - side + 1, (), generator=generator)) for size in picture.shape[1:])
    crop = picture[None, :, top : top + side, left : left + side].float()
    small = F.interpolate(crop, size=(32, 32), mode="bilinear", antialias=True, align_corners=False)
    return normalise(small.clamp(0, 255))


if __name__ == "__main__":
    main()
