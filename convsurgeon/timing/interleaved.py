"""Interleaved timing of several ONNX files in one process.

A block opens a session on every file, and a second one on the first file (the baseline against itself). Its rounds take
one sample of every session; the order is rotated and reversed from round to round, so that no model always follows the
same other. All samples of a block make the same number of runs. Slow files have fewer rounds, so that their intervals
are wider instead of their timing longer. **A sample is the fastest of its runs**: on a busy
machine that scatters far less than their mean or median. With one thread it is of processor time, which a busy machine
hardly changes. p50 and p90 are of all single runs by the wall clock, disturbed ones included.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from convsurgeon.base.progress import Bar, bar
from convsurgeon.onnx.files import random_feed
from convsurgeon.onnxnet.measuring.clock import Clock
from convsurgeon.onnxnet.measuring.engine import Engine
from convsurgeon.onnxnet.measuring.folder import is_long
from convsurgeon.onnxnet.session import Feed, check_engine, open_timed, run_session
from convsurgeon.timing.verdict import BLOCKS, TimeSamples

_SAMPLE_S = 3e-3
_BLOCK_S, _LEAST_ROUNDS = 2.0, 3
"""Seconds of a block's rounds, where that leaves so many; files that take long make one, see `LONG_S`."""
_QUIET_S = 2.0
_WARMUP, _WARMUP_IF_SLOW = 5, 2


@dataclass(frozen=True)
class RunTimes:
    """All times of one session over all blocks, in ms."""

    samples: TimeSamples
    """Fastest run of each sample, of the processor with one thread; shape (blocks, rounds)."""
    runs: TimeSamples
    """Every single run, by the wall clock."""
    slowed: float
    """Times as long as it takes with subnormal numbers as zeros, which is how all runs but a few are timed."""
    create_ms: float
    """To make a session, median over the blocks."""
    first_ms: float
    """The first run of a session, median over the blocks."""


@dataclass(frozen=True)
class _Slot:
    """One session of one block."""

    session: Any
    feed: Feed
    create_s: float
    first_s: float
    fastest_s: float
    slowed: float


def time_interleaved(
    paths: Sequence[Path],
    pairs: int,
    *,
    engine: Engine,
    batch: int,
    sizes: Mapping[str, int],
    seed: int,
    progress: bool,
) -> list[RunTimes]:
    """Time the first file twice and every other file once, in rounds that are split evenly over the blocks.

    Args:
        paths: of the files.
        pairs: rounds at most.
        engine: how the files are run.
        batch: for a symbolic first dimension.
        sizes: for other symbolic dimensions.
        seed: of the inputs.
        progress: whether a bar appears.

    Returns:
        One entry for the baseline, one for its second session, then one for each further file.
    """
    check_engine(engine)
    clock = engine.clock()
    files = [(path, random_feed(path, seed, batch, sizes)) for path in (paths[0], *paths)]
    rounds, long = math.ceil(pairs / BLOCKS), False

    def time_block(block: int) -> tuple[list[tuple[float, float, float]], TimeSamples]:
        nonlocal rounds, long
        # Sessions are made from either end in turn, so that none is always the first, and die with the block.
        backwards = block % 2 == 1
        order = files[:: -1 if backwards else 1]
        slots = [_open_slot(path, feed, engine, block == 0, sparing=long) for path, feed in order]
        slots = slots[::-1] if backwards else slots
        if block == 0:
            taken_s = sum(slot.fastest_s for slot in slots) * _repeats(slots)
            long = is_long(1e3 * min(slot.fastest_s for slot in slots))
            least = 1 if long else _LEAST_ROUNDS
            rounds = min(rounds, max(int(_BLOCK_S / taken_s), least))
        with _subnormal_as_zero():
            times = _run_rounds(slots, rounds, clock, shown)
        return [(slot.create_s, slot.first_s, slot.slowed) for slot in slots], times

    with bar(total=BLOCKS * rounds, desc="timing files", unit="round", show=progress, delay=_QUIET_S) as shown:
        blocks = [time_block(block) for block in range(BLOCKS)]
    starts = np.nanmedian([starts for starts, _ in blocks], axis=0)
    return [
        RunTimes(
            samples=1e3 * np.stack([times[index][..., 1].min(axis=1) for _, times in blocks]),
            runs=1e3 * np.concatenate([times[index][..., 0].reshape(-1) for _, times in blocks]),
            slowed=float(starts[index, 2]),
            create_ms=1e3 * float(starts[index, 0]),
            first_ms=1e3 * float(starts[index, 1]),
        )
        for index in range(len(files))
    ]


def _open_slot(path: Path, feed: Feed, engine: Engine, first: bool, sparing: bool) -> _Slot:
    """Return a fresh session that has run a few times; of the first block also what subnormal numbers cost it.

    Sessions whose runs are long are sparing with memory: there are three at least.
    """
    started = time.perf_counter()
    session = open_timed(path, engine)
    session = engine.sparing(session) if sparing else session
    create_s = time.perf_counter() - started
    started = time.perf_counter()
    run_session(session, feed, path)
    first_s = time.perf_counter() - started
    session = engine.sparing(session) if is_long(1e3 * first_s) and not sparing else session
    clock, slow = engine.clock(), first_s >= 10 * _SAMPLE_S
    if slow and not first:
        return _Slot(session, feed, create_s, first_s, first_s, math.nan)
    runs = _WARMUP_IF_SLOW if slow else _WARMUP
    plain_s = min(_time(session, feed, clock)[1] for _ in range(runs)) if first else math.nan
    with _subnormal_as_zero():
        fastest_s = min(_time(session, feed, clock)[1] for _ in range(runs))
    return _Slot(session, feed, create_s, first_s, fastest_s, plain_s / fastest_s)


def _run_rounds(slots: Sequence[_Slot], rounds: int, clock: Clock, shown: Bar) -> TimeSamples:
    """Return the seconds of every run by both clocks, shape (slots, rounds, repeats, 2)."""
    repeats = _repeats(slots)
    times = np.zeros((len(slots), rounds, repeats, 2))
    for turn in range(rounds):
        for index in _order(len(slots), turn):
            slot = slots[index]
            times[index, turn] = [_time(slot.session, slot.feed, clock) for _ in range(repeats)]
        shown.update()
    return times


def _repeats(slots: Sequence[_Slot]) -> int:
    """Return the runs of a sample: enough for 3 ms of the fastest model, and three at least where a run is short."""
    fastest = min(slot.fastest_s for slot in slots)
    return max(math.ceil(_SAMPLE_S / fastest), 3 if fastest < 10 * _SAMPLE_S else 1)


@contextmanager
def _subnormal_as_zero() -> Iterator[None]:
    """Have this thread take subnormal numbers for zeros, so that no file is slow, or fast, because of a few of them."""
    smallest = torch.full((), 1e-45, dtype=torch.float32, device="cpu")
    before = not bool(smallest * 1.0 > 0)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def _order(count: int, turn: int) -> list[int]:
    """Return the order of a round: every second one runs backwards, and the start moves on after each such pair."""
    order = [(index + turn // 2) % count for index in range(count)]
    return order if turn % 2 == 0 else order[::-1]


def _time(session: Any, feed: Feed, clock: Clock) -> tuple[float, float]:
    """Return the seconds of one run, by the wall clock and of the processor."""
    wall, own = clock.read()
    session.run(None, feed)
    ended, own_ended = clock.read()
    return max(ended - wall, 1e-9), max(own_ended - own, 1e-9)
