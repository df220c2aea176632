"""The command on the device."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from .engine import CPU, Engine, MeasureError
from .files import RESULT, missing, read_manifest, resume
from .folder import measure_folder
from .options import read_option
from .place import slowed_by_heat


def main(folder: Path) -> int:
    """Time the networks of a folder as the command line says, and return the exit status."""
    options = _read_options()
    target = Path(options.out) if options.out else folder / RESULT
    started, count = time.monotonic(), 0.0

    def show(name: str, passes: float) -> None:
        nonlocal count
        count += passes
        left = (time.monotonic() - started) / count * (total - count)
        print(f"\r{count:.0f} of {total}, {_minutes(left)} left: {name[:40]:40}", end="", file=sys.stderr, flush=True)

    try:
        if options.threads < 1 or options.passes < 1:
            raise MeasureError("threads and passes: pass at least 1")
        manifest = read_manifest(folder)
        engine = Engine(options.threads, options.provider or manifest.get("provider", CPU), dict(options.options))
        engine.check()
        raw = resume(manifest, target, engine, options.power)
        total = sum(len(missing(manifest, raw, number)) for number in range(options.passes))
        print(f"{total} networks to time, with {engine}; stop it at will, the next start goes on", file=sys.stderr)
        raw = measure_folder(folder, target, engine, options.passes, show, power=options.power)
    except (MeasureError, OSError) as error:
        print(f"measure.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nmeasure.py: stopped; start it again to go on", file=sys.stderr)
        return 1
    print(f"\nwritten: {target}{slowed_by_heat(raw['samples'])}", file=sys.stderr)
    return 0


def _read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Times the networks of this folder and writes device.json.")
    parser.add_argument("--threads", type=int, default=1, help="of the runtime (default 1)")
    parser.add_argument("--passes", type=int, default=3, help="sets of fresh sessions (default 3)")
    parser.add_argument("--provider", help="of onnxruntime, or openvino (default: what the folder was written for)")
    parser.add_argument(
        "--options", nargs="+", default=[], type=read_option, metavar="NAME=VALUE", help="of provider or session"
    )
    parser.add_argument("--power", default="", metavar="NAME", help="power mode of the device, to be written down")
    parser.add_argument("--out", default=None, help="where to write (default: device.json in the folder)")
    return parser.parse_args()


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
