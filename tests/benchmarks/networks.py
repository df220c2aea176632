"""What do networks of many kinds lose and gain: by default, within a loss, at a latency, recovered, and in int8?

Each is converted in a process of its own, with an empty cache of milliseconds, on images that are not those of the
test. Goals: `default`, `within` (the loss that is allowed, of the network's own metric on half of the test images,
judged on the other half), `latency=0.5`, `macs=0.3`, and each for an int8 file (`int8`, `int8 latency=0.5`).
`--recovered` adds rows of `recover` after a goal, on the calibration images alone, or with `--learn` on so many others
of their kind.

`lost` is in the metric's unit against the original, its standard error that of the difference on the same images.
`stay`: decisions of the original that the converted network makes, or how near the outputs are. `claimed`: the
speed-up that the result names; `times as fast`: files measured afterwards, in turns, with one thread and with all.
`won`: what recovery wins back. An int8 row is of `model-int8.onnx`: lost against the float original, times as fast as
the quantised original, whose loss is `original int8 lost`; `ships` is the file that the bundle recommends. `misled`:
more is lost than half a point, or a tenth of a dB or of a point of AUC (on one seed twice that), and neither the
sentence nor a warning says so. With `--resume` rows of the JSON file stay; they name their revision.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

import convsurgeon as cs
from convsurgeon.onnx.exporter import write_file
from convsurgeon.report.sentence import sentence
from tests.benchmarks.cases import add_networks, add_seeds
from tests.benchmarks.judge import InRuntime, halves, judged, measure_metric, sample_of
from tests.benchmarks.measure import compare_files, in_fresh_process, memory_mb, processor_seconds, saving
from tests.benchmarks.runner import Row, revision
from tests.benchmarks.subjects import SUBJECTS, Subject

GOALS = ("default", "within", "latency=0.5", "int8")
_TOLD = re.compile(
    r"do not (fit|show)|not the network's|decisions|loses|lost|of the classes|synthesised", re.IGNORECASE
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the networks, the goals and what else to try on them."""
    add_networks(parser, list(SUBJECTS), list(SUBJECTS))
    add_seeds(parser)
    parser.add_argument("--goals", nargs="+", default=list(GOALS), metavar="goal", help="default: %(default)s")
    parser.add_argument("--recovered", nargs="*", default=["latency=0.5"], metavar="goal", help="default: %(default)s")
    parser.add_argument("--learn", type=int, metavar="N", help="images to recover with, beyond those of the conversion")
    parser.add_argument("--pairs", type=int, default=50, help="of the measurement afterwards")
    parser.add_argument("--resume", action="store_true", help="keep the rows that the JSON file holds")


def run(options: argparse.Namespace) -> Iterator[Row]:
    """Yield the rows that are kept, then those of each network, seed and goal that are missing."""
    held = json.loads(options.out.read_text())["rows"] if options.resume and options.out.exists() else []
    yield from held
    known = {(row["network"], row["seed"], row["goal"]) for row in held}
    for name in options.networks:
        for seed, goal in ((seed, goal) for seed in options.seeds for goal in options.goals):
            recovered = goal in options.recovered
            if (name, seed, _after(goal, options) if recovered else goal) not in known:
                rows = in_fresh_process(convert, name, seed, goal, recovered, options)
                yield from (row for row in rows if (name, seed, row["goal"]) not in known)


def finish(_options: argparse.Namespace, rows: Sequence[Row]) -> int:
    """Print who is misled on one seed or in the mean, and what recovery made worse; return 1 if there is any."""
    bad = [row["network"] for row in rows if str(row.get("misled", "")).startswith("yes")]
    for name in {row["network"] for row in rows}:
        own = [row for row in rows if row["network"] == name and row["goal"] == "default" and "lost" in row]
        mean = float(np.mean([row["lost"] for row in own])) if own else 0.0
        if mean > SUBJECTS[name]().metric.allowed and not all(row["told"] for row in own):
            bad.append(f"{name} in the mean ({mean:.2f})")
    worse = [f"{row['network']}, {row['goal']}" for row in rows if row.get("won", 0) < -2 * row.get("± won", 0)]
    print("misled:", ", ".join(bad) or "nobody")
    print("worse after recovery:", "; ".join(worse) or "none")
    return int(bool(bad or worse))


def digest(rows: Sequence[Row]) -> list[Row]:
    """Return a line for each network: what it loses and how much faster it is under each goal, means over the seeds."""
    lines = []
    for name in dict.fromkeys(row["network"] for row in rows):
        line: Row = {"network": name}
        for goal in dict.fromkeys(row["goal"] for row in rows):
            own = [row for row in rows if (row["network"], row["goal"]) == (name, goal) and "lost" in row]
            if own:
                line["unit"], digits = own[0]["unit"], 3 if own[0]["unit"] == "dB" else 2
                lost, off, speed = (
                    float(np.mean([row.get(key, 1.0) for row in own])) for key in ("lost", "±", "times as fast")
                )
                line[f"{goal}: lost"] = f"{lost:.{digits}f} ± {off:.{digits}f}" if speed != 1 else "left as it was"
                line[f"{goal}: times"] = f"{speed:.2f}"
        lines.append(line)
    return lines


def convert(name: str, seed: int, goal: str, recovered: bool, options: argparse.Namespace) -> list[Row]:
    """Return the row of one network, converted here, and that of its recovery."""
    torch.set_num_threads(options.threads)
    about: Row = {"network": name, "seed": seed, "goal": goal, "revision": revision()}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        os.environ["CONVSURGEON_CACHE"] = folder
        try:
            rows = list(_Job(SUBJECTS[name](), seed, goal, options, Path(folder)).rows(recovered))
        except cs.ConvSurgeonError as error:
            return [about | {"refused": f"{type(error).__name__}: {error}"}]
    said = [str(one.message).partition("\n")[0] for one in caught if issubclass(one.category, UserWarning)]
    for row in rows:
        row |= {"warnings": said, "told": bool(said or row["warning"]) or _admits(row["sentence"], row["lost"])}
        row["misled"] = "-" if "=" in goal else _misled(row, SUBJECTS[name]())  # a budget may cost what it costs
    return [about | row for row in rows]


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


class _Job:
    """One conversion, and what is measured of it."""

    def __init__(self, subject: Subject, seed: int, goal: str, options: argparse.Namespace, folder: Path) -> None:
        self.subject, self.seed, self.goal, self.options, self.folder = subject, seed, goal, options, folder
        self.int8, self.wanted = goal.startswith("int8"), goal.removeprefix("int8").strip()
        self.model, self.images, self.batches = subject.make(), subject.images(seed), list(subject.test())

    def rows(self, recovered: bool) -> Iterator[Row]:
        """Yield what the conversion gives, then what its recovery does."""
        started = processor_seconds()
        result = self._converted()
        row = saving(result) | {"processor s": round(processor_seconds() - started), "peak MB": _peak()}
        row |= self._measured(result) | {"claimed": _claimed(result)}
        report = result.report
        row |= {"sentence": sentence(report), "warning": report.warning}
        yield row | {"notes": list(report.notes), "trials": report.tried.records()}
        if recovered and result.changes:
            yield row | self._recovered(result)

    def _converted(self) -> cs.Result:
        goal: cs.Budget | cs.Within | None = None
        if self.wanted == "within":
            given, self.batches = halves(self.batches)

            def own_metric(model: nn.Module) -> float:
                return measure_metric(self.subject, model, given)

            goal = cs.Within(self.subject.metric.allowed, metric=own_metric)
        elif "=" in self.wanted:
            goal = cs.Budget.parse(self.wanted)
        return cs.convert(
            self.model, sample_of(self.subject, self.images), calibration=self.images, goal=goal, seed=self.seed,
            runtime=cs.Runtime(precision="int8" if self.int8 else "fp32"), progress=False,
        )  # fmt: skip

    def _measured(self, result: cs.Result) -> Row:
        if self.int8 and result.changes:
            return self._int8(result)
        return self._judged(self.model, result.model) | self._float(result)

    def _judged(self, before: nn.Module, after: nn.Module) -> Row:
        return judged(self.subject, before, after.eval(), self.batches)

    def _float(self, result: cs.Result) -> Row:
        """Return sizes and speed of the two float files; without changes they differ where there are PReLUs."""
        if not result.changes and not any(isinstance(module, nn.PReLU) for module in self.model.modules()):
            return {}
        files = [self.folder / "original.onnx", self.folder / "model.onnx"]
        for model, file in zip((self.model, result.model), files, strict=True):
            write_file(model, result.example, file, metadata={}, as_it_was=model is self.model)
        return self._timed(*files)

    def _timed(self, before: Path, after: Path) -> Row:
        """Return how much faster a file is with one thread and with all, and both sizes."""
        row: Row = {}
        for threads, mark in {1: "", os.cpu_count() or 1: " with all threads"}.items():
            timed = compare_files(before, after, threads=threads, pairs=self.options.pairs)
            row |= {f"{key}{mark}": timed[key] for key in ("times as fast", "interval")}
        return row | {"MB": f"{_megabytes(before):.2f} -> {_megabytes(after):.2f}"}

    def _int8(self, result: cs.Result) -> Row:
        """Return what the int8 files of a bundle lose and gain."""
        folder, pairs = self.folder / "bundle", self.options.pairs
        fits = self.images.shape[1:] == result.example.tensors()[0].shape[1:]
        best = cs.export(
            result, folder, int8=True, calibration=self.images if fits else None, pairs=pairs, overwrite=True,
            progress=False,
        ).recommended  # fmt: skip
        before, after = folder / "original-int8.onnx", folder / "model-int8.onnx"
        row = self._judged(self.model, InRuntime(after)) | self._timed(before, after)
        row["original int8 lost"] = self._judged(self.model, InRuntime(before))["lost"]
        row["over float"] = compare_files(folder / "original.onnx", after, threads=1, pairs=pairs)["times as fast"]
        return row | ({} if best is None else {"ships": f"{best.name} at {best.speedup:.2f} of the float original"})

    def _recovered(self, result: cs.Result) -> Row:
        """Return what recovery wins back, against the conversion on the same test images."""
        started, count, recipe = processor_seconds(), self.options.learn, cs.Recipe(seed=self.seed)
        images = self.images
        if count is not None:
            images = self.subject.more(count, self.seed)
            recipe = cs.Recipe(seed=self.seed, transform=self.subject.transform)
        better = cs.recover(result, images, recipe=recipe, progress=False)
        spent = {"processor s": round(processor_seconds() - started), "peak MB": _peak(), "images": len(images)}
        won = self._judged(better.model, result.model)
        row = {"goal": _after(self.goal, self.options), **spent, "won": won["lost"], "± won": won["±"]}
        judged_now = self._int8(better) if self.int8 else self._judged(self.model, better.model)
        return row | judged_now | {"sentence": sentence(better.report)}


def _after(goal: str, options: argparse.Namespace) -> str:
    """Return what the row of recovery after a goal is called."""
    return f"{goal}, recovered" + (f" on {options.learn} images" if options.learn else "")


def _peak() -> int:
    return round(memory_mb("VmHWM"))


def _megabytes(file: Path) -> float:
    return file.stat().st_size / 1e6


def _claimed(result: cs.Result) -> float:
    """Return the speed-up that the result names."""
    found = re.search(r"(\d+\.\d+) times as fast", sentence(result.report))
    return float(found[1]) if found and result.changes else 1.0
