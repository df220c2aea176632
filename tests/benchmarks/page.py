"""RESULTS.md: what the JSON files in `results` say. No figure on it is written by hand."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

from tests.benchmarks import runner

PAGE = Path(__file__).with_name("RESULTS.md")
_HEAD = """# Results

Made by `python -m tests.benchmarks page` from the files in `results/`; to change a figure, run its benchmark again.
Times are to be read as ratios within one table: another machine has others.
Intervals of times as fast are of one minute in every row below: of 25 networks that were timed again minutes later 72 %
lay where they say. Read them as wider on either side, by a seventh where a file is twice as fast and by a quarter where
it is four times as fast; then it is 96 %, and so intervals are made since.
"""


_NO_GPU = """\
Which forms pay on a GPU is not known: `gpu` has never been run on one, only its test on a CPU, with tiny networks.
"""


def text() -> str:
    """Return the page."""
    files = sorted(runner.RESULTS.glob("*.json"))
    head = [_HEAD] if any(path.stem == "gpu" for path in files) else [_HEAD, _NO_GPU]
    return "\n".join([*head, *(_section(path.stem, json.loads(path.read_text(encoding="utf-8"))) for path in files)])


def _section(title: str, record: runner.Record) -> str:
    """Return a record's circumstances and rows, after what the benchmark's `digest` makes of them."""
    lines = "\n".join(f"    {line}" for line in runner.described(record).splitlines())
    digest = getattr(importlib.import_module(f"tests.benchmarks.{record['benchmark']}"), "digest", None)
    tables = [runner.table(rows) for rows in (*([digest(record["rows"])] if digest else []), record["rows"])]
    return "\n\n".join([f"## {title}", record["question"], lines, *tables]) + "\n"


def write() -> None:
    """Write the page beside this file."""
    PAGE.write_text(text(), encoding="utf-8")
