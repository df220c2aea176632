"""The part of the command line that is about measured latencies; onnx and onnxruntime load when it runs."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from convsurgeon.base.errors import BudgetError
from convsurgeon.budget.problem import BUDGET_FORMS
from convsurgeon.graph.example import Example


def add_device(command: argparse.ArgumentParser) -> None:
    """Options of `device`."""
    command.add_argument("--out", required=True, metavar="DIR", help="where the folder for the device goes")
    command.add_argument("--force", action="store_true", help="replace an existing one that holds no result")


def add_latencies(command: argparse.ArgumentParser) -> None:
    """Options of commands that plan within a latency."""
    command.add_argument(
        "--device",
        metavar="FILE.json",
        help="plan for the device that this was measured on (see the device command); else for this machine",
    )
    command.add_argument(
        "--cache", metavar="DIR", help="where latencies of this machine are kept (default: the user's cache folder)"
    )


def latencies(
    options: argparse.Namespace, model: nn.Module, example: Example, choices: Mapping[str, Any]
) -> dict[str, Any]:
    """The table of latencies that a budget needs, as keyword arguments of `convert`; none where it needs none.

    Raises:
        BudgetError: a device without a budget for the latency.
        LatencyError: the file is damaged, or the network cannot be timed.
    """
    budget = choices.get("budget")
    if budget is None or budget.latency is None:
        if options.device:
            raise BudgetError("--device: no latency is asked for; add --budget latency=0.5, or latency=faster")
        return {}
    return _table(options, model, example, choices)


def add_milliseconds(command: argparse.ArgumentParser) -> None:
    """Options of `sweep`, which plans in MACs and may show milliseconds beside them."""
    command.add_argument(
        "--milliseconds", action="store_true", help="measure every layer in onnxruntime here, and show the sums"
    )
    command.add_argument("--device", metavar="FILE.json", help="or take what was measured on a device")
    command.add_argument("--cache", metavar="DIR", help="where latencies of this machine are kept")


def shown_milliseconds(
    options: argparse.Namespace, model: nn.Module, example: Example, choices: Mapping[str, Any]
) -> dict[str, Any]:
    """The table of latencies that a sweep shows, as keyword arguments; none where it was not asked for.

    Raises:
        LatencyError: the file is damaged, or the network cannot be timed.
    """
    return _table(options, model, example, choices) if options.device or options.milliseconds else {}


def _table(
    options: argparse.Namespace, model: nn.Module, example: Example, choices: Mapping[str, Any]
) -> dict[str, Any]:
    from convsurgeon.deploy.table.table import LatencyTable

    if options.device:
        return {"latencies": LatencyTable.load(options.device)}
    threads = next(iter(getattr(options, "threads", [])), 1)
    forms, policy = choices.get("forms", BUDGET_FORMS), choices["policy"]
    how: dict[str, Any] = {"threads": threads, "cache": options.cache, "progress": not options.json}
    return {"latencies": LatencyTable.measure(model, example, forms, policy, **how)}


def write_device(options: argparse.Namespace, model: nn.Module, example: Example, choices: Mapping[str, Any]) -> None:
    """The `device` command, once its model is there."""
    from convsurgeon.deploy.table.device import write_device_folder

    forms = choices.get("forms", BUDGET_FORMS)
    count = write_device_folder(model, example, forms, options.out, choices["policy"], overwrite=options.force)
    size = sum(path.stat().st_size for path in Path(options.out).iterdir())
    print(f"{options.out}: the dense network and {count} candidates, {size / 1e6:.1f} MB")
    print(f"On the device: python {Path(options.out) / 'measure.py'}, which needs numpy and onnxruntime and writes")
    print("device.json. Then here: convsurgeon convert ... --budget latency=0.5 --device device.json")
