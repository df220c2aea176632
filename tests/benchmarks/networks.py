"""What do some twenty networks of many kinds lose of what their users measure, by default, and is anybody misled?

Each is converted in a process of its own, with an empty cache of milliseconds, on images that are not those of the
test. `lost` is in the metric's unit, its standard error that of the difference on the same images. `stay`: decisions
of the original that the converted network makes, or how near the outputs are. `claimed`: the speed-up that the result
names; `times as fast`: files measured afterwards, in turns. `misled`: more is lost than half a point, or a tenth of a
dB or of a point of AUC (on one seed twice that), and neither the sentence nor a warning says so. With `--resume` rows
may be of several revisions, which they name.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

import convsurgeon as cs
from convsurgeon.report.sentence import sentence
from tests.benchmarks.cases import add_networks, add_seeds
from tests.benchmarks.measure import compare_models, in_fresh_process, memory_mb, processor_seconds, saving
from tests.benchmarks.runner import Row, revision
from tests.benchmarks.subjects import SUBJECTS, Subject

_TOLD = re.compile(
    r"do not (fit|show)|not the network's|decisions|loses|lost|of the classes|synthesised", re.IGNORECASE
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the networks, the goals and what else to try on them."""
    add_networks(parser, list(SUBJECTS), list(SUBJECTS))
    add_seeds(parser)
    parser.add_argument("--within", nargs="*", default=[], metavar="network", help="also Within(metric=...) on these")
    parser.add_argument("--pairs", type=int, default=50, help="of the measurement afterwards")
    parser.add_argument("--resume", action="store_true", help="keep the rows that the JSON file holds")


def run(options: argparse.Namespace) -> Iterator[Row]:
    """Yield a row for each network, seed and goal."""
    held = json.loads(options.out.read_text())["rows"] if options.resume and options.out.exists() else []
    kept = {(row["network"], row["seed"], row["goal"]): row for row in held}
    for name in options.networks:
        goals = ["default", *["within"] * (name in options.within)]
        for seed, goal in ((seed, goal) for seed in options.seeds for goal in goals):
            row = kept.get((name, seed, goal))
            yield row or in_fresh_process(convert, name, seed, goal, options.threads, options.pairs)


def finish(_options: argparse.Namespace, rows: Sequence[Row]) -> int:
    """Print who is misled on one seed or in the mean; return 1 if anybody is."""
    bad = [row["network"] for row in rows if str(row.get("misled", "")).startswith("yes")]
    for name in {row["network"] for row in rows}:
        own = [row for row in rows if row["network"] == name and row["goal"] == "default" and "lost" in row]
        mean = float(np.mean([row["lost"] for row in own])) if own else 0.0
        if mean > SUBJECTS[name]().metric.allowed and not all(row["told"] for row in own):
            bad.append(f"{name} in the mean ({mean:.2f})")
    print("misled:", ", ".join(bad) or "nobody")
    return int(bool(bad))


def convert(name: str, seed: int, goal: str, threads: int, pairs: int) -> Row:
    """Return the row of one network, converted here."""
    torch.set_num_threads(threads)
    subject = SUBJECTS[name]()
    row: Row = {"network": name, "seed": seed, "goal": goal, "revision": revision()}
    with tempfile.TemporaryDirectory() as cache, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        os.environ["CONVSURGEON_CACHE"] = cache
        try:
            row |= _converted(subject, seed, goal, pairs)
        except cs.ConvSurgeonError as error:
            return row | {"refused": f"{type(error).__name__}: {error}"}
    said = [str(one.message).partition("\n")[0] for one in caught if issubclass(one.category, UserWarning)]
    row |= {"warnings": said, "told": bool(said or row["warning"]) or _admits(row["sentence"], row["lost"])}
    return row | {"misled": _misled(row, subject)}


def _admits(said: str, lost: float) -> bool:
    """Return whether a sentence says that at least as many percent of decisions change as are lost."""
    found = re.search(r"([\d.]+) ?% of (?:decisions|every class) stay", said)
    return found is not None and 100 - float(found[1]) >= lost


def _misled(row: Row, subject: Subject) -> str:
    """Return "yes" only for a loss that the images of the test are enough to tell."""
    much = row["lost"] - row["±"] > subject.metric.allowed or row["lost"] > 2 * subject.metric.allowed
    if not much:
        return "no"
    return "no, told" if row["told"] else "yes"


def _converted(subject: Subject, seed: int, goal: str, pairs: int) -> Row:
    """Return what a conversion gives: the default's, or within what may be lost of a metric on other test images."""
    started, model, images, batches = processor_seconds(), subject.make(), subject.images(seed), list(subject.test())
    wanted = None
    if goal == "within":
        given, batches = batches[::2], batches[1::2]
        wanted = cs.Within(subject.metric.allowed, metric=lambda one: measure_metric(subject, one, given))
    example = sample_of(subject, images)
    result = cs.convert(model, example, calibration=images, goal=wanted, seed=seed, progress=False)
    row = saving(result) | {"processor s": round(processor_seconds() - started), "peak MB": round(memory_mb("VmHWM"))}
    row |= judged(subject, model, result.model.eval(), batches)
    report, said = result.report, sentence(result.report)
    found = re.search(r"(\d+\.\d+) times as fast", said)
    row["claimed"] = float(found[1]) if found and result.changes else 1.0
    if result.changes:
        timed = compare_models(model, result.model, example, 1, pairs)
        row |= {"times as fast": timed["times as fast"], "interval": timed["interval"]}
    row |= {"sentence": said, "warning": report.warning}
    return row | {"notes": list(report.notes), "trials": report.tried.records()}


def sample_of(subject: Subject, images: Tensor) -> Tensor:
    """Return what a network is timed with."""
    return images[:1] if images.shape[1:] == subject.shape[1:] else torch.zeros(subject.shape)


@torch.inference_mode()
def measure_metric(subject: Subject, model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> float:
    counts = [subject.metric.counts(model(images), answers) for images, answers in batches]
    return subject.metric.together(torch.cat(counts))


@torch.inference_mode()
def judged(subject: Subject, before: nn.Module, after: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> Row:
    """Return the metric before and after, what is lost with its standard error, and what stays."""
    metric, first, second = subject.metric, [], []
    same = asked = noise = power = 0.0
    for images, answers in batches:
        one, two = before(images), after(images)
        first.append(metric.counts(one, answers))
        second.append(metric.counts(two, answers))
        if (stay := metric.stay(one, two)) is not None:
            same, asked = same + stay[0], asked + stay[1]
        noise += float((one - two).double().square().sum())
        power += float(one.double().square().sum())
    lost, off = metric.lost(torch.cat(first), torch.cat(second))
    near = f"{10 * math.log10(power / noise):.1f} dB" if noise else "all"
    kept = f"{100 * same / max(asked, 1):.1f} %" if metric.decide else near
    values = [metric.together(torch.cat(counts)) for counts in (first, second)]
    return {"unit": metric.unit, "before": values[0], "after": values[1], "lost": lost, "±": off, "stay": kept}
