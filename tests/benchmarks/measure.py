"""How the benchmarks measure: files in turns, tasks in turns, peaks of memory in a fresh process."""

from __future__ import annotations

import gc
import multiprocessing
import random
import re
import resource
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

import convsurgeon as cs
from convsurgeon.onnx.exporter import write_file

Task = Callable[[], object]


def compare_models(
    before: nn.Module, after: nn.Module, example: object, threads: int, pairs: int = 100
) -> dict[str, Any]:
    """Return how much faster the second network is as an ONNX file, with its interval and the verdict in words.

    The first one's file has PReLU as torch writes it, as the original in a bundle has.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / "before.onnx", Path(folder) / "after.onnx"]
        for model, file in zip((before, after), files, strict=True):
            write_file(model, example, file, metadata={}, as_it_was=model is before)
        return compare_files(*files, threads=threads, pairs=pairs)


def compare_files(before: Path, after: Path, threads: int, pairs: int = 100) -> dict[str, Any]:
    """Return the columns of a comparison of two files."""
    found = cs.timing.compare(before, after, threads=threads, pairs=pairs, progress=False)
    low, high = found.interval
    return {"times as fast": found.speedup, "interval": f"{low:.3f} to {high:.3f}", "verdict": str(found.verdict)}


def in_turns(
    tasks: Mapping[str, Task], rounds: int, runs: int = 1, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Return seconds of every task, once a round in a new random order; a round before, which warms up, is dropped.

    Of several runs in a row the fastest counts.
    """
    order, shuffle = list(tasks), random.Random(0).shuffle
    times: dict[str, list[float]] = {name: [] for name in tasks}
    gc.freeze()  # what lives now is not looked at again
    for turn in range(rounds + 1):
        shuffle(order)
        for name in order:
            gc.collect()
            seconds = min(_timed(tasks[name], clock) for _ in range(runs))
            if turn:
                times[name].append(seconds)
    gc.unfreeze()
    return times


def _timed(task: Task, clock: Callable[[], float]) -> float:
    started = clock()
    task()
    return clock() - started


def paired_ratio(times: Sequence[float], base: Sequence[float]) -> dict[str, Any]:
    """Return the median of the ratios within rounds, and a bootstrap interval of 95 %."""
    ratios = np.array(times) / np.array(base)
    picks = np.random.default_rng(0).integers(len(ratios), size=(2000, len(ratios)))
    low, high = np.quantile(np.median(ratios[picks], axis=1), [0.025, 0.975])
    return {"ratio": float(np.median(ratios)), "interval": f"{low:.3g} to {high:.3g}"}


def in_fresh_process(function: Callable[..., Any], *arguments: object) -> Any:
    """Return what a function of a module gives in a process of its own, so that its peak of memory is its own too."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def processor_seconds() -> float:
    """Return what this process and those that it waited for have used."""
    return time.process_time() + sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


def memory_mb(field: str) -> float:
    """Return `VmRSS` (resident now) or `VmHWM` (its peak) of this process."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def deployed(runtime: cs.Runtime, model: nn.Module, images: Tensor) -> nn.Module:
    """Return the model as the file that ships computes it; ranges of int8 come from a batch of the images."""
    return runtime.deployed(model, [cs.Example.of(images[:64])])


def saving(result: cs.Result) -> dict[str, Any]:
    """Return the columns that every conversion has: convs that changed and the share of MACs that is left."""
    plan = result.plan
    return {"convs": f"{len(plan.changes)} of {len(plan.steps)}", "MACs": plan.macs_after / plan.cost.macs}
