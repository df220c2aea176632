"""Plans and metrics of fixed calls, to hold one version of the code against another.

    python tests/benchmarks/bench_frozen.py --out before.json [--networks digits resnet20 dncnn] [--only macs default]
    python tests/benchmarks/bench_frozen.py --out after.json --against before.json

Seeds are fixed and the latency table is made up, so two versions that do the same choose the same plans; metrics may
differ by rounding. Run both on one machine.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import convsurgeon as cs
from convsurgeon.graph.capture import Capture
from examples import digits
from tests import networks

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Case:
    """A network, its calibration images, its metric, and the loss that `within` allows."""

    model: Callable[[], nn.Module]
    images: Callable[[], Tensor]
    metric: Callable[[nn.Module], float]
    within: float


def _digit_net() -> nn.Module:
    model = digits.digit_net()
    model.load_state_dict(load_file(ROOT / "examples" / "digits.safetensors"))
    return model.eval()


def _digit_images() -> Tensor:
    return torch.from_numpy(np.load(ROOT / "examples" / "digits_calibration.npy"))


def set12(model: nn.Module) -> float:
    """PSNR in dB over three images."""
    return networks.set12_psnr(model, 3)


CASES = {
    "digits": Case(_digit_net, _digit_images, digits.accuracy, 0.5),
    "resnet20": Case(
        lambda: networks.pretrained("resnet20"), lambda: networks.cifar_calibration(256), networks.cifar_top1, 1.0
    ),
    "dncnn": Case(lambda: networks.pretrained("dncnn"), lambda: networks.noisy_crops(40, 40), set12, 0.2),
}


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


def _calls(case: Case, folder: Path) -> dict[str, Callable[[], cs.Result]]:
    """What is asked of every network."""
    images = case.images()
    example = images[:1]

    def call(**arguments: Any) -> cs.Result:
        return cs.convert(case.model(), example, calibration=images, progress=False, **arguments)

    def table(precision: str = "fp32") -> Any:
        return MadeUp(cs.capture(case.model(), example), precision)

    def onnx_in() -> cs.Result:
        path = folder / "model.onnx"
        cs.onnx.export(case.model(), example, path, overwrite=True)
        return cs.convert(str(path), calibration=images, budget=cs.Budget(macs=0.4), progress=False)

    return {
        "by hand": lambda: call(forms=[cs.CP(rank=32), cs.DepthwiseSeparable(rank=2)]),
        "macs": lambda: call(budget=cs.Budget(macs=0.3)),
        "latency": lambda: call(budget=cs.Budget(latency=0.5), latencies=table()),
        "within": lambda: call(metric=case.metric, within=case.within, latencies=table()),
        "default": lambda: call(latencies=table()),
        "int8": lambda: call(budget=cs.Budget(latency=0.6, precision="int8"), latencies=table("int8")),
        "onnx in": onnx_in,
    }


def frozen(name: str, only: list[str]) -> dict[str, Any]:
    """Plan, metric and processor seconds of every call on one network."""
    case = CASES[name]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for words, call in _calls(case, Path(folder)).items():
            if only and words not in only:
                continue
            torch.manual_seed(0)
            start = time.process_time()
            result = call()
            seconds = time.process_time() - start
            plan = {change.name: change.form.to_dict() for change in result.changes.values()}
            found[words] = {"metric": case.metric(result.model), "macs": result.plan.macs_after, "plan": plan,
                            "seconds": round(seconds, 1)}  # fmt: skip
            print(name, words, f"{found[words]['metric']:.3f} {found[words]['macs']} {seconds:.1f} s", flush=True)
    return found


def compared(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """A line for every call."""
    lines = []
    for name, calls in after.items():
        for words, new in calls.items():
            old = before.get(name, {}).get(words)
            if old is not None:
                same = "the same plan" if old["plan"] == new["plan"] else "ANOTHER PLAN"
                lines.append(
                    f"{name:9} {words:8} {same:13} metric {old['metric']:.3f} -> {new['metric']:.3f}, "
                    f"macs {old['macs']} -> {new['macs']}, seconds {old['seconds']} -> {new['seconds']}"
                )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--networks", nargs="+", default=list(CASES))
    parser.add_argument("--only", nargs="+", default=[])
    options = parser.parse_args()
    torch.set_num_threads(1)
    after = json.loads(options.out.read_text()) if options.out.exists() else {}
    for name in options.networks:
        after.setdefault(name, {}).update(frozen(name, options.only))
        options.out.write_text(json.dumps(after, indent=1))
    if options.against:
        print("\n".join(compared(json.loads(options.against.read_text()), after)))


if __name__ == "__main__":
    main()
