"""Clocks: the wall's, a thread's own, and what others take of the processor."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from typing import Any

import numpy as np

from .place import machine

Times = np.ndarray[Any, np.dtype[np.float64]]

_NOTED_TOGETHER_S = 1e-4
_PROBE_S = 0.03
_CAN_WATCH = hasattr(time, "pthread_getcpuclockid")


def busy_share(threads: int) -> float:
    """Return the share of their time that so many threads wait for a processor, as they all work for a moment."""
    data, shares = bytes(1 << 18), []

    def work() -> None:
        started = time.perf_counter(), time.thread_time()
        while time.perf_counter() < started[0] + _PROBE_S:
            hashlib.sha256(data)  # other threads of Python go on meanwhile
        shares.append((time.thread_time() - started[1]) / (time.perf_counter() - started[0]))

    workers = [threading.Thread(target=work) for _ in range(min(threads, machine()["cores"]))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return max(0.0, 1 - sum(shares) / len(workers))


class Clock:
    """The wall clock and, where it tells what a run takes, the processor time of the thread that asks.

    With one thread onnxruntime and OpenVINO run in the thread that calls them. On a busy machine that thread waits, and
    its processor time alone is the network's. With more threads, or on another processor, the wall clock stands for
    both.

    Args:
        own: whether the network runs in the calling thread.
    """

    def __init__(self, own: bool) -> None:
        self.own = own and os.name == "posix"  # elsewhere it ticks too slowly

    def read(self) -> tuple[float, float]:
        """Return both, in seconds."""
        wall = time.perf_counter()
        return wall, time.thread_time() if self.own else wall


class Watch:
    """Notes both clocks of the thread that made it, every millisecond, from another thread.

    The profiler goes by the wall clock, and on a busy machine every node that runs longer than a turn on the processor
    is interrupted, in every run. The notes tell how much of each node was processor time.
    """

    def __init__(self, clock: Clock) -> None:
        self._own = time.pthread_getcpuclockid(threading.get_ident()) if clock.own and _CAN_WATCH else None
        self._thread = threading.Thread(target=self._note, daemon=True)
        self._over = False
        self._noted: list[tuple[float, float]] = []
        self._notes = np.zeros((0, 2))

    def __enter__(self) -> Watch:
        if self._own is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        if self._own is not None:
            self._thread.join()

    def _note(self) -> None:
        assert self._own is not None
        while not self._over:
            before, own, after = time.perf_counter(), time.clock_gettime(self._own), time.perf_counter()
            if after - before < _NOTED_TOGETHER_S:
                self._noted.append((1e3 * (before + after) / 2, 1e3 * own))
            time.sleep(1e-3)

    def add(self, stamps: Times) -> None:
        """Take over both clocks, in ms, as that thread read them itself, before and after its runs."""
        every = np.concatenate([np.array(self._noted).reshape(-1, 2), stamps.reshape(-1, 2)])
        self._notes = every[np.argsort(every[:, 0])]

    def own_ms(self, starts_ms: Times, durations_ms: Times) -> Times:
        """Return how much of every stretch of the wall clock was processor time; all of it where nobody watched."""
        walls, owns = self._notes.T
        ends = np.interp(starts_ms + durations_ms, walls, owns)
        return durations_ms if self._own is None else np.asarray(ends - np.interp(starts_ms, walls, owns))
