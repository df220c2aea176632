"""Is the verdict on two files right on a loaded machine, and do times in turns say what a session by itself takes?

`null`: a file against itself, wanted "no measurable difference"; `work`: against one with 5 % more convs, wanted
"slower". `--load` starts that many processes which keep a core and the memory busy. `turns`: speed-ups of converted
networks from sessions in turns, beside those from processes with one session of the runtime's own settings each.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

import convsurgeon as cs
from tests.benchmarks.cases import random_network
from tests.benchmarks.measure import compare_files, in_fresh_process
from tests.benchmarks.runner import Row
from tests.onnx.small import conv_stack

FORMS: dict[str, cs.Form] = {"separable 1": cs.DepthwiseSeparable(rank=1), "cp 0.3": cs.CP(rank=cs.Share(0.3))}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add how often, and beside what."""
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--load", type=int, default=2, help="busy neighbours")
    parser.add_argument("--turns", nargs="*", default=[], metavar="network", help="compare with sessions alone, too")


def run(options: argparse.Namespace) -> Iterator[Row]:
    """Yield a row for each verdict, then for each network alone and in turns."""
    with neighbours(options.load), tempfile.TemporaryDirectory() as folder:
        base = conv_stack(Path(folder) / "base.onnx", 20, channels=32, size=16)
        more = conv_stack(Path(folder) / "more.onnx", 21, channels=32, size=16)
        for number in range(options.runs):
            for label, other, wanted in (("null", base, "no measurable difference"), ("work", more, "slower")):
                row = compare_files(base, other, threads=options.threads)
                yield {"run": number, "what": label} | row | {"right": row["verdict"] == wanted}
    for name in options.turns:
        yield from _turns(name, options.threads)


def finish(_options: argparse.Namespace, rows: Sequence[Row]) -> int:
    """Print how often the verdict was right; return 1 below 95 % of the nulls or 90 % of the others."""
    short = False
    for label, least in (("null", 0.95), ("work", 0.9)):
        right = [row["right"] for row in rows if row["what"] == label]
        print(f"{label}: {sum(right)} of {len(right)} right")
        short |= sum(right) < least * len(right)
    return int(short)


@contextlib.contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Keep so many processes busy."""
    started = [multiprocessing.Process(target=_busy, daemon=True) for _ in range(count)]
    for one in started:
        one.start()
    yield
    for one in started:
        one.terminate()


def _busy() -> None:
    """Stream through memory until stopped."""
    data = np.random.default_rng(0).random((1500, 1500))
    while True:
        data = data * 0.5 + data.T * 0.5


def _turns(name: str, threads: int) -> Iterator[Row]:
    model, example = random_network(name)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "dense.onnx"
        cs.onnx.export(model, example, base)
        for label, form in FORMS.items():
            made = cs.convert(model, example, forms=[form], calibration=False, progress=False).model
            file = base.with_name(f"{label}.onnx")
            cs.onnx.export(made, example, file)
            alone = [np.median([in_fresh_process(alone_ms, one, threads) for _ in range(3)]) for one in (base, file)]
            row = {"run": name, "what": label, "times as fast alone": float(alone[0] / alone[1])}
            yield row | compare_files(base, file, threads=threads)


def alone_ms(path: Path, threads: int, seconds: float = 1.5) -> float:
    """Return the mean of the fastest quarter of the runs of one session with the runtime's own settings."""
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    session = ort.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    (taken, *_) = session.get_inputs()
    feed = {taken.name: np.random.default_rng(0).standard_normal(taken.shape).astype(np.float32)}
    times: list[float] = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        started = time.perf_counter()
        session.run(None, feed)
        times.append(1e3 * (time.perf_counter() - started))
    return float(np.mean(sorted(times)[: len(times) // 4 + 1]))
