"""Does the same default call end with the same verdict and plan, however busy the machine is?

A fresh process converts the digits network with an empty cache, beside as many busy processes as each load says;
`--one-core` leaves the process and its neighbours one core.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator, Sequence

import convsurgeon as cs
from tests.benchmarks.cases import CASES
from tests.benchmarks.measure import in_fresh_process
from tests.benchmarks.runner import Row
from tests.benchmarks.verdict import neighbours


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add how often, and beside what."""
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--loads", type=int, nargs="+", default=[0, 2, 4, 8], help="busy neighbours")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--one-core", action="store_true")


def run(options: argparse.Namespace) -> Iterator[Row]:
    """Yield a row for each conversion."""
    for number in range(options.runs):
        for load in options.loads:
            with neighbours(load):
                row = in_fresh_process(_convert, options.images, options.one_core)
            yield {"load": load, "run": number} | row


def finish(_options: argparse.Namespace, rows: Sequence[Row]) -> int:
    """Print how many verdicts and plans there were; return 1 if verdicts differ."""
    verdicts = {row["verdict"] for row in rows}
    speeds = [row["times as fast"] for row in rows if row["times as fast"]]
    print(f"{len(rows)} conversions: {verdicts}, {len({row['plan'] for row in rows})} plans")
    print(f"times as fast {min(speeds, default=1):.2f} to {max(speeds, default=1):.2f}")
    return int(len(verdicts) > 1)


def _convert(images: int, one_core: bool) -> Row:
    if one_core and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    case = CASES["digits"]
    with tempfile.TemporaryDirectory() as cache:
        result = cs.convert(
            case.model(),
            calibration=case.images(0)[:images],
            example=case.images(0)[:1],
            runtime=cs.Runtime(cache=cache),
            progress=False,
        )
    taken = next((trial for trial in result.trials if trial.taken), None)
    low, high = (1.0, 1.0) if taken is None else taken.interval
    return {
        "verdict": "converted" if result.changes else "left",
        "times as fast": None if taken is None else taken.speed_up,
        "interval": f"{low:.2f} to {high:.2f}",
        "trials": len(result.trials),
        "timed": sum(trial.is_timed for trial in result.trials),
        "plan": ", ".join(f"{name} {change.form.label}" for name, change in result.changes.items()),
        "sentence": result.report.speed,
    }
