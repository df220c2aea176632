"""Interleaved timing of several ONNX files in one process.

A block opens a session on every file, and a second one on the first file (the baseline against itself). Its rounds take
one sample of every session; the order is rotated and reversed from round to round, so that no model always follows the
same other. All samples of a block make the same number of runs. **A sample is the fastest of its runs**: with two busy
neighbours on two cores, the baseline against itself scattered by 60 % from round to round when a sample was the mean of
three runs, by 10 % as their median and by 4 % as their minimum, and over six sets of sessions the median ratio strayed
by up to 2.5 %, 2.0 % and 0.6 %. p50 and p90 are of all single runs, disturbed ones included.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import onnxruntime as ort
from tqdm import tqdm

from convsurgeon.base import processes as world
from convsurgeon.onnx.session import random_feed
from convsurgeon.onnxnet.session import Feed, Level, open_session, run_session, session_options
from convsurgeon.timing.verdict import Samples

_SAMPLE_S = 3e-3
_QUIET_S = 2.0
BLOCKS = 5


@dataclass(frozen=True)
class Setup:
    """How sessions are made, fed and timed."""

    threads: int
    level: Level
    seed: int
    batch: int
    sizes: Mapping[str, int]
    warmup: int
    progress: bool


@dataclass(frozen=True)
class Clocked:
    """All times of one session slot over one or all blocks, in ms."""

    samples: Samples
    """Fastest run of each sample, shape (blocks, rounds)."""
    runs: Samples
    """Every single run."""
    create_ms: float
    """Making a session, median over the blocks."""
    first_ms: float
    """The first run of a session, median over the blocks."""


@dataclass(frozen=True)
class _Slot:
    """One session of one block, and what was measured on it."""

    session: ort.InferenceSession
    feed: Feed
    create_s: float
    first_s: float
    fastest_s: float


def clock(paths: Sequence[Path], pairs: int, setup: Setup) -> list[Clocked]:
    """Times the first file twice and every other file once, in interleaved rounds.

    Args:
        paths: The files; the first is the baseline.
        pairs: Rounds in all, split evenly over the blocks (rounded up).
        setup: How to run.

    Returns:
        One entry for the baseline, one for its second session, then one for each further file.
    """
    rounds = math.ceil(pairs / BLOCKS)
    with _bar(BLOCKS * rounds, setup.progress) as bar:
        blocks = [
            _block([paths[0], *paths], rounds, backwards=block % 2 == 1, setup=setup, bar=bar)
            for block in range(BLOCKS)
        ]
    return [_joined([block[index] for block in blocks]) for index in range(len(paths) + 1)]


def _block(paths: Sequence[Path], rounds: int, *, backwards: bool, setup: Setup, bar: tqdm[NoReturn]) -> list[Clocked]:
    """Fresh sessions and their rounds; they are made in turn from either end, so that none always comes first."""
    order = list(enumerate(paths))
    made = {index: _open(path, setup) for index, path in (reversed(order) if backwards else order)}
    slots = [made[index] for index in range(len(paths))]
    times = 1e3 * _rounds(slots, rounds, _repeats(slots), bar)
    return [
        Clocked(
            samples=runs.min(axis=1)[None],
            runs=runs.reshape(-1),
            create_ms=1e3 * slot.create_s,
            first_ms=1e3 * slot.first_s,
        )
        for slot, runs in zip(slots, times, strict=True)
    ]


def _joined(blocks: Sequence[Clocked]) -> Clocked:
    return Clocked(
        samples=np.concatenate([block.samples for block in blocks]),
        runs=np.concatenate([block.runs for block in blocks]),
        create_ms=float(np.median([block.create_ms for block in blocks])),
        first_ms=float(np.median([block.first_ms for block in blocks])),
    )


def _open(path: Path, setup: Setup) -> _Slot:
    started = time.perf_counter()
    session = open_session(path, session_options(setup.threads, setup.level))
    create_s = time.perf_counter() - started
    feed = random_feed(session, path, setup.seed, setup.batch, setup.sizes)
    started = time.perf_counter()
    run_session(session, feed, path)
    first_s = time.perf_counter() - started
    warm = [_time(session, feed) for _ in range(max(1, setup.warmup))]
    return _Slot(session, feed, create_s, first_s, min(warm))


def _repeats(slots: Sequence[_Slot]) -> int:
    """Runs per sample: enough for 3 ms of the fastest model, and three at least where a run is short."""
    fastest = min(slot.fastest_s for slot in slots)
    return max(math.ceil(_SAMPLE_S / fastest), 3 if fastest < 10 * _SAMPLE_S else 1)


def _rounds(slots: Sequence[_Slot], rounds: int, repeats: int, bar: tqdm[NoReturn]) -> Samples:
    """Seconds of every run, shape (slots, rounds, repeats)."""
    times = np.zeros((len(slots), rounds, repeats))
    for turn in range(rounds):
        for index in _order(len(slots), turn):
            slot = slots[index]
            times[index, turn] = [_time(slot.session, slot.feed) for _ in range(repeats)]
        bar.update()
    return times


def _order(count: int, turn: int) -> list[int]:
    """Every second round runs backwards, and the start moves on after each such pair."""
    order = [(index + turn // 2) % count for index in range(count)]
    return order if turn % 2 == 0 else order[::-1]


def _time(session: ort.InferenceSession, feed: Feed) -> float:
    started = time.perf_counter_ns()
    session.run(None, feed)
    return max(time.perf_counter_ns() - started, 1) * 1e-9


def _bar(total: int, progress: bool) -> tqdm[NoReturn]:
    """A bar that appears only when the work takes longer than two seconds."""
    return tqdm(total=total, desc="timing", unit="round", delay=_QUIET_S, leave=False, disable=world.silent(progress))
