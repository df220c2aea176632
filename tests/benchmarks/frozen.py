"""Do two versions of the code choose the same plans, with the same metrics, on fixed calls?

    python -m tests.benchmarks frozen --out before.json                          # in one version
    python -m tests.benchmarks frozen --out after.json --against before.json     # in the other, on the same machine

Seeds are fixed and the latency table is made up, so two versions that do the same choose the same plans; metrics may
differ by rounding.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import convsurgeon as cs
from convsurgeon.graph.capture import Capture
from tests import networks
from tests.benchmarks import cases
from tests.benchmarks.runner import Row


def set12(model: nn.Module) -> float:
    """PSNR in dB over three images."""
    return networks.set12_psnr(model, 3)


Net = tuple[Callable[[], nn.Module], Callable[[], Tensor], Callable[[nn.Module], float], float]
NETWORKS: dict[str, Net] = {
    "digits": (cases.digit_net, cases.digit_images, cases.CASES["digits"].metric, 0.5),
    "resnet20": (cases.CASES["resnet20"].model, lambda: networks.cifar_calibration(256), networks.cifar_top1, 1.0),
    "dncnn": (cases.CASES["dncnn"].model, lambda: networks.noisy_crops(40, 40), set12, 0.2),
}
"""Model, calibration set, metric, and the loss that `within` allows."""


class MadeUp:
    """Milliseconds from MACs: half a microsecond a conv, pointwise convs at full speed, others at half of it."""

    def __init__(self, seen: Capture, precision: str) -> None:
        self.precision = precision
        self._sites = {site.name: site for site in seen.sites}
        self.total_ms = 1.15 * sum(self.ms(name, None) for name in self._sites)

    def has(self, site: str, form: cs.Form | None) -> bool:
        """Whether this was measured."""
        return site in self._sites

    def ms(self, site: str, form: cs.Form | None) -> float:
        """Milliseconds of a site."""
        one = self._sites[site]
        speed = 7e7 if self.precision == "fp32" else 2e8
        if form is None:
            return one.macs / speed + 0.0005
        macs = sum(one.images(call) * form.macs(one.geometry, one.size(call)) for call in one.calls)
        return 1.25 * macs / speed + 0.0005 * 3

    def time(self, *_: object, **__: object) -> None:
        """Time nothing: these milliseconds are made up."""


def _calls(name: str, folder: Path) -> dict[str, Callable[[], cs.Result]]:
    """What is asked of every network."""
    make, images_of, metric, tolerance = NETWORKS[name]
    images = images_of()
    example = images[:1]

    def call(**arguments: Any) -> cs.Result:
        return cs.convert(make(), example, calibration=images, progress=False, **arguments)

    def runtime(precision: Any = "fp32") -> cs.Runtime:
        return cs.Runtime(precision=precision, table=MadeUp(cs.capture(make(), example), precision))

    def onnx_in() -> cs.Result:
        path = folder / "model.onnx"
        cs.onnx.export(make(), example, path, overwrite=True)
        return cs.convert(str(path), calibration=images, goal=cs.Budget(macs=0.4), progress=False)

    return {
        "by hand": lambda: call(forms=[cs.CP(rank=32), cs.DepthwiseSeparable(rank=2)]),
        "macs": lambda: call(goal=cs.Budget(macs=0.3)),
        "latency": lambda: call(goal=cs.Budget(latency=0.5), runtime=runtime()),
        "within": lambda: call(goal=cs.Within(tolerance, metric=metric), runtime=runtime()),
        "default": lambda: call(runtime=runtime()),
        "int8": lambda: call(goal=cs.Budget(latency=0.6), runtime=runtime("int8")),
        "onnx in": onnx_in,
    }


CALLS = ("by hand", "macs", "latency", "within", "default", "int8", "onnx in")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what is asked of which networks, and the file to compare with."""
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--only", nargs="+", default=list(CALLS), choices=CALLS)
    parser.add_argument("--against", type=Path, help="JSON of another version")


def run(options: argparse.Namespace) -> Iterator[Row]:
    """Yield plan, metric and processor seconds of every call."""
    for name in options.networks:
        with tempfile.TemporaryDirectory() as folder:
            for words, call in _calls(name, Path(folder)).items():
                if words in options.only:
                    yield {"network": name, "call": words} | _outcome(call, NETWORKS[name][2])


def _outcome(call: Callable[[], cs.Result], metric: Callable[[nn.Module], float]) -> Row:
    torch.manual_seed(0)
    start = time.process_time()
    result = call()
    seconds = round(time.process_time() - start, 1)
    plan = {change.name: change.form.to_dict() for change in result.changes.values()}
    return {"metric": metric(result.model), "macs": result.plan.macs_after, "seconds": seconds, "plan": plan}


def finish(options: argparse.Namespace, rows: Sequence[Row]) -> int:
    """Print a line for every call that the other file has too; return 1 if a plan differs."""
    if options.against is None:
        return 0
    before = _calls_in(json.loads(options.against.read_text(encoding="utf-8")))
    others = 0
    for new in rows:
        old = before.get((new["network"], new["call"]))
        if old is not None:
            others += old["plan"] != new["plan"]
            print(
                f"{new['network']:9} {new['call']:8} "
                f"{'the same plan' if old['plan'] == new['plan'] else 'ANOTHER PLAN':13} "
                f"metric {old['metric']:.3f} -> {new['metric']:.3f}, macs {old['macs']} -> {new['macs']}, "
                f"seconds {old['seconds']} -> {new['seconds']}"
            )
    return 1 if others else 0


def _calls_in(held: Any) -> dict[tuple[str, str], Row]:
    """Return the calls of a file by network and name; older files hold them nested instead of as rows."""
    if "rows" in held:
        return {(row["network"], row["call"]): row for row in held["rows"]}
    return {(name, words): row for name, calls in held.items() for words, row in calls.items()}
