"""What keeps a converted network from its MAC ratio: every kind of conv's arithmetic and memory traffic, profiled.

    python tests/benchmarks/bench_ceiling.py [dncnn vgg16 resnet18] [--sizes 256 64] [--threads 1]

For each network, input size and form: milliseconds, MACs per second and bytes per second of the stem, of dense, of
depthwise, of pointwise convs and of everything else, from the runtime's profile of every node. Bytes are those of a
node's inputs, weights and outputs, read or written once. `copy` is what one core copies between arrays as large as
the largest activation (bytes read and written), `dense` what a dense conv of the network does: where a kind of conv is
near the copy it waits for memory, whatever its MACs. Weights are random: only time counts.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import convsurgeon as cs
from convsurgeon.onnxnet import proto
from convsurgeon.timing.node_macs import work_of
from convsurgeon.timing.node_profile import profile
from tests.benchmarks.bench_latency_table import NETWORKS

FORMS: dict[str, cs.Form | None] = {
    "dense": None,
    "separable 1": cs.DepthwiseSeparable(rank=1),
    "separable 3": cs.DepthwiseSeparable(rank=3),
    "spatial 0.5": cs.SpatialSeparable(rank=cs.Share(0.5)),
    "spatial 0.25": cs.SpatialSeparable(rank=cs.Share(0.25)),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("networks", nargs="*", default=["dncnn"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 64])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.networks:
        for size in options.sizes:
            rows = list(_network(name, size, options.threads))
            headers = ("network", "form", "convs", "nodes", "ms", "GMAC/s", "GB/s", "MACs", "speed-up", "of MAC ratio")
            print(tabulate(rows, headers, tablefmt="pipe", floatfmt=".2f"), flush=True)


def _network(name: str, size: int, threads: int) -> Iterator[tuple[object, ...]]:
    build, shape = NETWORKS[name]
    torch.manual_seed(0)
    model, example = build().eval(), torch.randn(*shape[:2], size, size)
    dense_ms = 0.0
    for label, form in FORMS.items():
        changed, share = model, 1.0
        if form is not None:
            result = cs.convert(model, example, forms=[form], calibration=False)
            changed, share = result.model, result.plan.macs_after / result.plan.cost.macs
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "net.onnx"
            cs.onnx.export(changed, example, file)
            kinds, largest = _work(file)
            found = profile(file, runs=20, threads=threads)
        if form is None:
            dense_ms = found.total_ms
            yield f"{name} {size}", "copy", f"{largest / 1e6:.1f} MB", "", "", "", _copied(largest), "", "", ""
        times: dict[str, list[float]] = {}
        for node in found.nodes:
            kind, macs, moved = kinds.get(node.name, ("other", 0.0, 0.0))
            entry = times.setdefault(kind, [0, 0.0, 0.0, 0.0])
            for place, value in enumerate((1, node.ms, macs, moved)):
                entry[place] += value
        for kind, (count, ms, macs, moved) in times.items():
            yield f"{name} {size}", label, kind, count, ms, macs / ms / 1e6, moved / ms / 1e6, "", "", ""
        speedup = dense_ms / found.total_ms
        yield f"{name} {size}", label, "all", len(found.nodes), found.total_ms, "", "", share, speedup, speedup * share


def _work(file: Path) -> tuple[dict[str, tuple[str, float, float]], int]:
    """Node -> kind, MACs and bytes of every conv, and the bytes of the largest activation."""
    model = onnx.shape_inference.infer_shapes(onnx.load(file), data_prop=True)
    graph = model.graph
    shapes: dict[str, tuple[int, ...]] = {one.name: tuple(one.dims) for one in graph.initializer}
    values = (*graph.input, *graph.value_info, *graph.output)
    shapes |= {name: tuple(map(int, shape)) for name, shape in proto.signature(values) if all(shape)}
    macs = work_of(file).by_node
    found: dict[str, tuple[str, float, float]] = {}
    largest = 0
    for node in graph.node:
        made = shapes.get(node.output[0], ())
        largest = max(largest, 4 * int(np.prod(made or (0,))))
        if node.op_type == "Conv":
            taken, weight = shapes[node.input[0]], shapes[node.input[1]]
            sizes = sum(int(np.prod(one)) for one in (taken, weight, made))
            name = node.name or node.output[0]
            found[name] = (_kind(weight, taken), float(macs[name]), 4.0 * sizes)
    return found, largest


def _kind(weight: tuple[int, ...], taken: tuple[int, ...]) -> str:
    if taken[1] <= 4:
        return "stem"
    if weight[1] == 1 and weight[0] > 1:
        return "depthwise"
    return "pointwise" if set(weight[2:]) == {1} else "dense"


def _copied(size: int) -> float:
    """GB/s read and written by one core, over eight pairs of arrays: none is in a cache because it was just used."""
    pairs = [(np.ones(size // 4, np.float32), np.empty(size // 4, np.float32)) for _ in range(8)]
    times = []
    for _ in range(10):
        for source, target in pairs:
            started = time.perf_counter()
            np.copyto(target, source)
            times.append(time.perf_counter() - started)
    return 2 * size / 1e9 / float(np.median(times))


if __name__ == "__main__":
    main()
