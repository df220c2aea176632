"""Runs cases in forked workers, so that a crash of the interpreter is one more failure with its seed."""

from __future__ import annotations

import multiprocessing
import random
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection

import torch

from tests.fuzz import files, graphs, networks, stored, texts

KINDS: dict[str, tuple[Callable[[random.Random], None], int]] = {
    "graph": (graphs.check, 2),
    "policy": (texts.policy, 32),
    "plan": (texts.plan, 21),
    "arguments": (texts.arguments, 8),
    "weights": (files.weights, 18),
    "onnx": (files.onnx, 2),
    "network": (networks.check, 2),
    "device": (stored.device, 8),
    "images": (stored.images, 8),
    "checkpoint": (stored.checkpoint, 1),
}
"""Kind of case -> its check, and how many of a hundred cases it gets."""

CHUNK = 250
_PATIENCE_S = 600
_FORK = multiprocessing.get_context("fork")


def prepare(kinds: Sequence[str]) -> None:
    """What the workers share, and one thread in each."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    texts.captured()
    if {"weights", "onnx"} & set(kinds):
        files.prepare()
    if "network" in kinds:
        networks.prepare()
    if "checkpoint" in kinds:
        stored.prepare()


def chunks(kinds: Sequence[str], cases: int) -> Iterator[tuple[str, int, int]]:
    """Kind, first case and count, kinds taking turns, so that a run cut short has seen all of them."""
    weights = sum(KINDS[kind][1] for kind in kinds)
    left = {kind: round(cases * KINDS[kind][1] / weights) for kind in kinds}
    done = dict.fromkeys(kinds, 0)
    while any(left.values()):
        for kind in kinds:
            count = min(left[kind], max(1, CHUNK * KINDS[kind][1] // min(40, weights)))
            if count:
                yield kind, done[kind], count
            left[kind] -= count
            done[kind] += count


def one(kind: str, seed: str) -> None:
    """One case, by `seed:number`."""
    KINDS[kind][0](random.Random(f"{kind}:{seed}"))


def run_chunk(kind: str, seed: int, start: int, count: int) -> tuple[list[str], float]:
    """The failures of some cases, in words with their seeds, and the seconds they took."""
    began = time.perf_counter()
    here, there = _FORK.Pipe(duplex=False)
    process = _FORK.Process(target=_worker, args=(there, kind, seed, start, count))
    process.start()
    there.close()
    failures, at = [], f"{seed}:{start}"
    try:
        while here.poll(_PATIENCE_S):
            at, failure = here.recv()
            if failure:
                failures.append(f"{kind} {at}: {failure}")
        failures.append(f"{kind} {at}: takes more than {_PATIENCE_S} s")
    except EOFError:
        process.join()
        if process.exitcode:
            failures.append(f"{kind} {at}: the interpreter crashed with exit code {process.exitcode}")
    finally:
        process.kill()
        process.join()
    return failures, time.perf_counter() - began


def _worker(there: Connection, kind: str, seed: int, start: int, count: int) -> None:
    for number in range(start, start + count):
        at = f"{seed}:{number}"
        there.send((at, ""))
        try:
            one(kind, at)
        except BaseException as error:
            there.send((at, f"{type(error).__name__}: {' '.join(str(error).split())[:600]}"))
