"""The command line of the benchmarks.

python -m tests.benchmarks --list
python -m tests.benchmarks NAME [options]       # rows as a table, and results/NAME.json (or --out FILE)
python -m tests.benchmarks page                 # RESULTS.md from the JSON files that are there
python -m tests.benchmarks picture              # README's picture, from results/networks.json (needs matplotlib)
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks import page, picture, runner

NAMES = (
    "frozen",
    "calibration",
    "forms",
    "places",
    "other_runtimes",
    "gpu",
    "int8",
    "popular",
    "networks",
    "alternatives",
    "files",
    "conversion_time",
    "verdict",
    "at_load",
    "wrong_images",
)
"""Every benchmark is a module here with a docstring, `add_options(parser)` and `run(options)`, which yields rows."""


def main(arguments: Sequence[str]) -> int:
    """Run one benchmark, list them, or make the page; return the exit status."""
    name = arguments[0] if arguments else "--help"
    if name == "--list":
        print("\n".join(f"{name:16} {runner.question(name)}" for name in NAMES))
    elif name == "page":
        page.write()
    elif name == "picture":
        picture.write()
    elif name in NAMES:
        return _run(name, arguments[1:])
    else:
        print(__doc__)
        return 0 if name in ("--help", "-h") else 2
    return 0


def _run(name: str, arguments: Sequence[str]) -> int:
    module = importlib.import_module(f"tests.benchmarks.{name}")
    parser = argparse.ArgumentParser(
        f"python -m tests.benchmarks {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=runner.RESULTS / f"{name}.json", help="the JSON file to write")
    parser.add_argument("--threads", type=int, default=1, help="of torch and of onnxruntime")
    module.add_options(parser)
    options = parser.parse_args(arguments)
    record = runner.run(name, module, options, arguments)
    finish = getattr(module, "finish", None)
    return finish(options, record["rows"]) if finish else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
