"""Recovery by one process with two threads against two processes with one each: time per image, and the same result?

    python tests/benchmarks/bench_processes.py [--images 2048] [--epochs 2] [--batch-size 128] [--optimizer soap]

ResNet-20 at 0.3 of its MACs, weights from the SVD, a rate of 1e-3, no augmentation; the two take turns for
`--rounds` rounds. `torchrun` starts the two processes, gloo sums their gradients.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import convsurgeon as cs
from convsurgeon.base import processes as world
from convsurgeon.distill.recipe import OPTIMIZERS
from tests.networks import cifar_calibration, pretrained

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--optimizer", default="soap", choices=list(OPTIMIZERS))
    parser.add_argument("--into", type=Path, help="be one of the processes")
    options = parser.parse_args()
    if options.into:
        _work(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        _compare(options, Path(folder))


def _work(options: argparse.Namespace) -> None:
    model, images = pretrained("resnet20"), cifar_calibration(options.images, 0)
    result = cs.convert(model, images[:1], forms=[cs.Blueprint(rank=2)], calibration=False)
    how = {name: getattr(options, name) for name in ("epochs", "batch_size", "optimizer")}
    with world.joined():
        better = cs.recover(result, images, lr=1e-3, hold_back=128, progress=False, **how)
        if world.rank() == 0:
            done = better.report.recovery[0]
            torch.save(better.model.state_dict(), options.into / "weights.pt")
            found = {"seconds": done.seconds, "images": done.steps * done.batch_size, "distance": done.after.distance}
            (options.into / "found.json").write_text(json.dumps(found))


def _compare(options: argparse.Namespace, folder: Path) -> None:
    ways = {"one process, 2 threads": (1, 2), "two processes, 1 thread": (2, 1)}
    times: dict[str, list[float]] = {name: [] for name in ways}
    weights, far = {}, {}
    for _ in range(options.rounds):
        for name, (processes, threads) in ways.items():
            into = folder / str(processes)
            into.mkdir(exist_ok=True)
            _start(options, into, processes, threads)
            found = json.loads((into / "found.json").read_text())
            times[name].append(1000 * found["seconds"] / found["images"])
            weights[name], far[name] = torch.load(into / "weights.pt", weights_only=True), found["distance"]
    one, two = weights.values()
    off = max(float((one[key] - two[key]).abs().max()) for key in one if one[key].is_floating_point())
    rows = [(name, statistics.median(found), min(found), max(found), far[name]) for name, found in times.items()]
    print(tabulate(rows, ["", "ms per image", "least", "most", "distance"], tablefmt="pipe", floatfmt=".4g"))
    ratio = statistics.median(b / a for a, b in zip(*times.values(), strict=True))
    print(f"two / one: {ratio:.3f}; largest difference of a weight: {off:.2g}")


def _start(options: argparse.Namespace, into: Path, processes: int, threads: int) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", __file__]
    for name in ("images", "epochs", "batch_size", "optimizer"):
        command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    subprocess.run([*command, "--into", str(into)], check=True, env=environment, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
