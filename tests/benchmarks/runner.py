"""Runs one benchmark and records its rows with everything that a figure means nothing without."""

from __future__ import annotations

import argparse
import ast
import datetime
import json
import os
import shlex
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from tabulate import tabulate

import convsurgeon
from convsurgeon.timing.machine import read_machine

Row = dict[str, Any]
Record = dict[str, Any]
RESULTS = Path(__file__).with_name("results")
ROOT = Path(__file__).resolve().parents[2]


def question(name: str) -> str:
    """Return the first line of a benchmark's docstring: what it asks."""
    text = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(text)) or "").splitlines()[0]


def run(name: str, module: ModuleType, options: argparse.Namespace, arguments: Sequence[str]) -> Record:
    """Run a benchmark; print each row as it comes, keep the JSON file up to date, print the table at the end."""
    torch.set_num_threads(options.threads)
    started = time.perf_counter()
    record = {**_circumstances(name, arguments), "threads": options.threads, "minutes": 0.0, "rows": []}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for row in module.run(options):
        print(" | ".join(f"{key} {_short(value)}" for key, value in row.items() if not _nested(value)), flush=True)
        record["rows"].append(row)
        record["minutes"] = round((time.perf_counter() - started) / 60, 1)
        record["load"][1] = round(os.getloadavg()[0], 1)
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"\n{described(record)}\n\n{table(record['rows'])}\n")
    return record


def _circumstances(name: str, arguments: Sequence[str]) -> Record:
    here = read_machine()
    load = round(here.load, 1)
    return {
        "benchmark": name,
        "question": question(name),
        "command": shlex.join(["python", "-m", "tests.benchmarks", name, *_without_places(arguments)]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "revision": revision(),
        "machine": f"{here.cpu}, {here.cores} cores ({' '.join(here.isa)})",
        "versions": f"convsurgeon {convsurgeon.__version__}, torch {torch.__version__}, onnx {here.onnx}, "
        f"onnxruntime {here.onnxruntime}, Python {here.python}",
        "load": [load, load],
    }


def _without_places(arguments: Sequence[str]) -> list[str]:
    """Drop where files and other runtimes lie: it says nothing about the figures."""
    kept = list(arguments)
    for option in {"--out", "--python", "--litert", "--node"} & set(kept):
        del kept[kept.index(option) : kept.index(option) + 2]
    return kept


def revision() -> str:
    """Return the short hash of the commit, with a mark where the working tree differs from it."""
    try:
        command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
        return subprocess.check_output(command, cwd=ROOT, text=True, stderr=subprocess.DEVNULL).strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def described(record: Record) -> str:
    """Return the circumstances of a record in three lines."""
    before, after = record["load"]
    return (
        f"{record['command']}\n"
        f"{record['date']}, revision {record['revision']}, {record['minutes']} minutes; {record['machine']}, "
        f"{record['threads']} threads, load {before} to {after}\n{record['versions']}"
    )


def table(rows: Sequence[Row], style: str = "github") -> str:
    """Return rows as a table of the columns that hold plain values."""
    columns = list(dict.fromkeys(key for row in rows for key, value in row.items() if not _nested(value)))
    cells = [[_short(row.get(column)) for column in columns] for row in rows]
    return tabulate(cells, columns, tablefmt=style, disable_numparse=True)


def _nested(value: object) -> bool:
    return isinstance(value, dict | list)


def _short(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
