"""What is a table of milliseconds worth in other runtimes, and what does a plan cost that was made for another one?

`off by` is what a network of mixed forms takes against what the table of its place promised. Then every place plans for
half of its milliseconds, if that can be had, and every plan is timed everywhere: `made for` and `timed in`.

Needs those providers: a Python with onnxruntime-openvino (which replaces onnxruntime) and openvino has three.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import onnxruntime as ort
import torch

import convsurgeon as cs
from convsurgeon.forms.catalogue import BUDGET_FORMS
from convsurgeon.planning.layers_as_convs import capture_as_convs
from convsurgeon.runtime.latencies import predict
from tests.benchmarks.cases import add_networks
from tests.benchmarks.forms import mix
from tests.benchmarks.runner import Row
from tests.benchmarks.subjects import SUBJECTS

PROVIDERS = ("CPUExecutionProvider", "OpenVINOExecutionProvider", "openvino")
FORMS = ("cp share 0.18", "cp share 0.43", "separable rank 1", "lowrank share 0.38")


def add_options(parser: argparse.ArgumentParser) -> None:
    add_networks(parser, list(SUBJECTS), ["digits", "resnet20", "squeezenet", "srvgg", "fsrcnn"])
    parser.add_argument("--providers", nargs="+", default=list(PROVIDERS))
    parser.add_argument("--precision", choices=("fp32", "int8"), default="fp32")
    parser.add_argument("--mixes", type=int, default=2)
    parser.add_argument("--budget", type=float, default=0.5, help="share of the milliseconds (0: no plans)")


def run(options: argparse.Namespace) -> Iterator[Row]:
    for name in options.networks:
        yield from _rows(name, options)


def _rows(name: str, options: argparse.Namespace) -> Iterator[Row]:
    subject = SUBJECTS[name]()
    model, example = subject.make().eval(), torch.zeros(subject.shape)
    seen, forms = capture_as_convs(model, example), [form for form in BUDGET_FORMS if form.label in FORMS]
    alone = [cs.plan(model, example, forms=[form]) for form in forms]
    plans: dict[str, cs.Plan] = {}
    places: dict[str, cs.Runtime] = {}
    for provider in options.providers:
        runtime = places[provider] = cs.Runtime(provider=provider, precision=options.precision)
        table: Any = runtime.measure(seen, forms, passes=1, prune=False, progress=False)
        mixes = [mix(alone, table, seed) for seed in range(options.mixes)]
        dense_ms, found = runtime.time_plans(seen, mixes, passes=1, progress=False)
        for seed, (plan, one) in enumerate(zip(mixes, found, strict=True)):
            promised, measured = table.total_ms / predict(table, plan), dense_ms / one.total_ms
            yield _row(name, provider, f"mix {seed}", dense_ms, measured, options) | {
                "promised": promised,
                "off by": f"{promised / measured - 1:+.1%}",
            }
        if options.budget:
            goal = cs.Budget(latency=options.budget)
            where = cs.Runtime(precision=options.precision, provider=provider, table=table)
            how: dict[str, Any] = {"goal": goal, "runtime": where, "calibration": False, "progress": False}
            with suppress(cs.errors.BudgetError):
                plans[provider] = cs.convert(model, example, forms=forms, **how).plan
    for provider in options.providers if plans else ():
        dense_ms, found = places[provider].time_plans(seen, list(plans.values()), passes=1, progress=False)
        for made_for, one in zip(plans, found, strict=True):
            yield _row(name, provider, f"made for {made_for}", dense_ms, dense_ms / one.total_ms, options)


def _row(name: str, provider: str, plan: str, dense_ms: float, speed_up: float, options: argparse.Namespace) -> Row:
    version = ort.__version__
    if provider == "openvino":
        from openvino import __version__ as version
    return {
        "network": name,
        "precision": options.precision,
        "timed in": provider,
        "version": version.split("-")[0],
        "plan": plan,
        "dense ms": dense_ms,
        "times as fast": speed_up,
    }
