"""Time a folder of candidate networks on this machine; needs Python 3.9, numpy, onnxruntime 1.12, and nothing else.

    python measure.py                 # in the folder that `convsurgeon device` wrote; writes device.json beside it

Take `device.json` back to the desktop and plan with it: `convsurgeon convert ... --budget latency=0.5 --device
device.json`. A run that was stopped goes on where it was: results are written after every few networks.

A pass opens fresh sessions on the dense network and a few candidates of the same precision, runs them in turns, first
with the runtime's profiler and then without it, and keeps for every node the mean over its fastest quarter. Times of
one pass are to be compared with the dense network of the same pass only: the machine may have been busier in another.

The package measures with the same code, and takes its session options and the name of the processor from here.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

FORMAT = 2
MANIFEST, RESULT, DENSE = "manifest.json", "device.json", "dense"
DENSE_OF = {"fp32": DENSE, "int8": "dense-int8"}
"""Precision -> the network as it is, which all others of that precision are timed beside."""
CPU = "CPUExecutionProvider"
KERNEL_EVENT = "_kernel_time"
"""End of the name of a profiler's event that is the run of one node."""
GROUP = 4
"""Candidates that are open at once, beside the dense network; their results are written together."""
SECONDS = 0.5
"""Of a core, spent at most on each network in each pass, and a quarter of it with the profiler."""

_COPIED = ("network", "model", "example", "sites", "barred")
"""What the results take over from the manifest."""
_LEAST_RUNS, _FIRST_RUNS = 4, 20
_MOST = ((0.25, 30), (1.0, 240))
"""Share of the seconds, and most runs: with the profiler, and without."""
_NARROW = 0.02
"""Width of the interval of a ratio of two networks' times at which it counts as known."""
_RESAMPLES = 200
_WHOLE_RUN = "model_run"
_EVENT = re.compile(r'"dur"\s*:\s*(\d+),\s*"ts"\s*:\s*(\d+),.*?"name"\s*:\s*"([^"\\]*)"')
_FACTS = re.compile(r'"(op_name|node_index)"\s*:\s*"([^"\\]*)"')
_NOTED_TOGETHER_S = 1e-4
_PROBE_S = 0.03
_TICK_MS = 1e-3
"""Of the profiler's clock."""
_CAN_WATCH = hasattr(time, "pthread_getcpuclockid")
_SESSION_BYTES = 1.5e9

Raw = dict[str, Any]
Progress = Callable[[str], None]
Times = np.ndarray[Any, np.dtype[np.float64]]


class MeasureError(Exception):
    """The folder is not complete, or the runtime cannot run what is in it."""


def measure_folder(
    folder: Path,
    target: Path,
    threads: int,
    passes: int,
    progress: Progress | None = None,
    seconds: float = SECONDS,
    logs: Path | None = None,
    provider: str = CPU,
) -> Raw:
    """Time every network of a folder that the target file does not hold yet, and write the results there bit by bit.

    Args:
        folder: With `manifest.json` and the networks.
        target: Where the results are, and go.
        threads: Of the runtime.
        passes: Sets of fresh sessions.
        progress: Called with the label of a network whenever it has been timed in a pass.
        seconds: Per network and pass, with and again without the profiler.
        logs: A folder for the profiler's files, if not that for temporary ones.
        provider: Execution provider of the runtime.

    Raises:
        MeasureError: The folder or the target is damaged, or a network cannot be run.
    """
    manifest = read_manifest(folder)
    raw = {**_resume(manifest, target, threads), "provider": provider}
    for number in range(passes):
        for group in _groups(manifest, raw, number):
            raw["samples"] += _group(folder, manifest, group, number, threads, seconds, progress, logs, provider)
            write_json(target, raw)
    return raw


def read_manifest(folder: Path) -> Raw:
    """Return the folder's list of networks, if its files are unchanged.

    Raises:
        MeasureError: Something is missing or damaged.
    """
    manifest = read_json(folder / MANIFEST, "convsurgeon_candidates")
    try:
        files = {**manifest["files"]}
        names = {network["file"] for network in manifest["networks"].values()} | set(files)
        _ = [manifest["networks"][_dense(one)] for one in manifest["networks"].values()]
        _ = manifest["inputs"][0], [manifest[name] for name in _COPIED]
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise MeasureError(f"{folder / MANIFEST}: is damaged ({error!r}); copy the whole folder again") from None
    for name in sorted(names):
        path = folder / str(name)
        if Path(str(name)).name != name or not path.is_file():
            raise MeasureError(f"{path}: is missing; copy the whole folder again")
        if digest(path) != files.get(name):
            raise MeasureError(f"{path}: is damaged (checksum); copy the whole folder again")
    return manifest


def read_json(path: Path, mark: str) -> Raw:
    """Return a JSON object that bears a mark with this format's number.

    Raises:
        MeasureError: It cannot be read, or is of another kind.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MeasureError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError):
        raise MeasureError(f"{path}: is damaged (not JSON); delete it, or take another copy") from None
    if not isinstance(values, dict) or mark not in values:
        raise MeasureError(f"{path}: is another kind of file (it lacks {mark}); pass the right one")
    if values[mark] != FORMAT:
        raise MeasureError(f"{path}: has format {values[mark]!r}, expected {FORMAT}; make it again")
    return values


def write_json(path: Path, values: Raw) -> None:
    """Write JSON under a temporary name and rename it, so that the file is never half written."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(json.dumps(values, separators=(",", ":")))  # much faster than to dump piece by piece
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink()
        raise


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def machine() -> Raw:
    """Return the facts of this machine without which a time means nothing."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "system": f"{platform.system()} {platform.machine()}",
        "onnxruntime": ort.__version__,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0,
    }


def same_machine(one: Raw, other: Raw) -> bool:
    """Tell whether times of both machines may stand side by side."""
    return all(one.get(name) == other.get(name) for name in ("cpu", "cores", "system", "onnxruntime"))


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


def base_options(threads: int | None = None, spinning: bool = True) -> Any:
    """Return options under which a network runs as it does in use, and does not disturb others that are being timed.

    The runtime's workers spin between the nodes of a run, which decides what short nodes cost. By default they also
    spin between runs, and take the cores from other sessions; that is left out.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if threads is not None:
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    if spinning:
        options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _cpu() -> str:
    """Return the name of the processor, or of the board that it is on."""
    for place in ("/proc/device-tree/model", "/proc/cpuinfo"):
        try:
            text = Path(place).read_text(encoding="utf-8", errors="replace").replace("\0", "")
        except OSError:
            continue
        if place.endswith("model"):
            return text.strip()
        for line in text.splitlines():
            if line.startswith("model name") and ":" in line:
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _resume(manifest: Raw, target: Path, threads: int) -> Raw:
    """Return the results so far, with the manifest's networks added; none if the target does not exist."""
    here = machine()
    empty: Raw = {"convsurgeon_device": FORMAT, "machine": here, "threads": threads, "networks": {}, "samples": []}
    raw: Raw = read_json(target, "convsurgeon_device") if target.exists() else empty
    try:
        fits = same_machine(raw["machine"], here) and raw["threads"] == threads
        fits = fits and raw.get("network", manifest["network"]) == manifest["network"]
        raw["networks"] = {**raw["networks"], **manifest["networks"]}
        known = {(sample["pass"], sample["network"]) for sample in raw["samples"]}
    except (KeyError, TypeError, AttributeError) as error:
        raise MeasureError(f"{target}: is damaged ({error!r}); delete it to measure again") from None
    if not fits and known:
        raise MeasureError(f"{target}: was measured elsewhere or otherwise; move it away, or choose another --out")
    return {**raw, **{name: manifest[name] for name in _COPIED}}


def _missing(manifest: Raw, raw: Raw, number: int) -> list[str]:
    """Return the candidates that a pass has not timed yet."""
    known = {sample["network"] for sample in raw["samples"] if sample["pass"] == number}
    return [name for name in manifest["networks"] if name not in known and name not in DENSE_OF.values()]


def _dense(network: Raw) -> str:
    """Return the key of the network as it is, in the precision of this one."""
    return DENSE_OF[network.get("precision", "fp32")]


def _groups(manifest: Raw, raw: Raw, number: int) -> Iterator[list[str]]:
    """Yield what to open together within the memory, the dense network first; that alone if there is no candidate."""
    networks = manifest["networks"]
    room = min(_SESSION_BYTES, 0.4 * _free_bytes())
    for dense in DENSE_OF.values():
        own = [name for name in networks if _dense(networks[name]) == dense]
        names = [name for name in _missing(manifest, raw, number) if name in own]
        if len(own) == 1 and all(sample["network"] != dense for sample in raw["samples"]):
            yield own
        names = names if number % 2 == 0 else names[::-1]
        while names:
            group = [dense, names[0]]
            for name in names[1:GROUP]:
                if sum(2.0 * float(networks[one]["weight_bytes"]) + 5e7 for one in (*group, name)) > room:
                    break
                group.append(name)
            yield group
            names = names[len(group) - 1 :]


def _free_bytes() -> float:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024.0 * float(line.split()[1])
    except (OSError, ValueError, IndexError):
        pass
    return 4e9


def _group(
    folder: Path,
    manifest: Raw,
    names: list[str],
    number: int,
    threads: int,
    seconds: float,
    progress: Progress | None,
    logs: Path | None,
    provider: str,
) -> list[Raw]:
    """Time the dense network, which is the first, and some candidates in one pass, by node and in all."""
    networks = manifest["networks"]
    clock = Clock(threads, provider)
    with tempfile.TemporaryDirectory(dir=logs) as place:
        sessions = []
        for name in names if number % 2 == 0 else names[::-1]:
            file = networks[name]["file"]
            sessions.append((name, _open(folder / file, Path(place) / file, threads, provider)))
        feeds = _feeds(manifest["inputs"])
        warm = float(np.mean([min(_effort(session, feeds, threads) for _ in range(2)) for _, session in sessions]))
        most = [min(max(int(share * seconds / warm), _LEAST_RUNS), limit) for share, limit in _MOST]
        stamps, watch = watched_rounds(sessions, feeds, clock, most[0])
        profiles = {name: _profile(Path(session.end_profiling()), stamps[name], watch) for name, session in sessions}
        busy = busy_share(threads)
        times = _time(sessions, feeds, clock, most[1])
    if progress is not None:
        for name in names[1:]:
            progress(str(networks[name]["label"]))
    samples: list[Raw] = []
    for name in names:
        wall, total = (float(_low(times[name][:, column])) for column in (0, 1))
        dense = samples[0]["total_ms"] if samples else total
        scatter = max(_scatter(times[name][:, 1], times[names[0]][:, 1]))
        sample = {"pass": number, "network": name, "total_ms": total, "dense_ms": dense, "wall_ms": wall}
        samples.append({**sample, "scatter": scatter, "busy": busy, "nodes": profiles[name]})
    return samples


class Clock:
    """The wall clock and, where it tells what a run takes, the processor time of the thread that asks.

    With one thread onnxruntime runs in the thread that calls it. On a busy machine that thread waits, and its processor
    time alone is the network's. With more threads, or on another processor, the wall clock stands for both.
    """

    def __init__(self, threads: int, provider: str) -> None:
        self.own = threads == 1 and provider == CPU and os.name == "posix"  # elsewhere it ticks too slowly

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


def _open(path: Path, log: Path, threads: int, provider: str) -> Any:
    options = base_options(threads)
    options.enable_profiling = True
    options.profile_file_prefix = str(log)
    try:
        providers = list(dict.fromkeys((provider, CPU)))
        return ort.InferenceSession(str(path), options, providers=providers, enable_fallback=0)  # it would print
    except Exception as error:  # the runtime's exceptions share no base class but Exception
        raise MeasureError(f"{path}: onnxruntime cannot load it: {str(error).splitlines()[0][:200]}") from None


def _feeds(inputs: list[Raw]) -> Raw:
    """Return noise for floats, zeros for everything else."""
    random = np.random.default_rng(0)
    feeds = {}
    for one in inputs:
        dtype = np.dtype(one["dtype"])
        floating = np.issubdtype(dtype, np.floating)
        values = random.standard_normal(one["shape"]) if floating else np.zeros(one["shape"])
        feeds[one["name"]] = np.asarray(values, dtype=dtype)
    return feeds


def _time(sessions: list[tuple[str, Any]], feeds: Raw, clock: Clock, most: int) -> dict[str, Times]:
    """Return the milliseconds of each round's faster run, by the wall clock and by processor time, shape (rounds, 2).

    Rounds end when it is known of every network what it takes beside the others, or after about `most` runs.
    """
    times: dict[str, Times] = {}
    runs = 0
    while runs < most:
        more = _rounds(sessions, feeds, clock, min(runs or _FIRST_RUNS, most - runs))
        taken = {name: np.diff(stamps, axis=1).reshape(-1, 2, 2).min(axis=1) for name, stamps in more.items()}
        times = {name: np.concatenate([*([times[name]] if times else []), taken[name]]) for name in taken}
        runs = 2 * len(times[sessions[0][0]])
        beside = times[sessions[0][0]][:, 1]
        if all(sum(_scatter(one[:, 1], beside)) < _NARROW for one in times.values()):
            break
    return times


def _scatter(ones: Times, others: Times) -> tuple[float, float]:
    """Return how far the ratio of two networks' times may lie below and above what was found, as shares (95 %)."""
    drawn = np.random.default_rng(0).integers(len(ones), size=(_RESAMPLES, len(ones)))
    low, high = np.quantile(_low(ones[drawn]) / _low(others[drawn]), [0.025, 0.975]) / (_low(ones) / _low(others))
    return max(1 - float(low), 0.0), max(float(high) - 1, 0.0)


def _rounds(sessions: list[tuple[str, Any]], feeds: Raw, clock: Clock, runs: int) -> dict[str, Times]:
    """Return both clocks, in ms, before and after every run, shape (runs, 2, 2), two runs a round.

    Every second round goes backwards. Two runs in a row, because the second finds its weights in the processor's
    caches: in a round of single runs the networks at the ends alone would.
    """
    stamps: dict[str, list[Any]] = {name: [] for name, _ in sessions}
    for turn in range(math.ceil(runs / 2)):
        for name, session in sessions if turn % 2 == 0 else sessions[::-1]:
            stamps[name] += [_run(session, feeds, clock) for _ in range(2)]
    return {name: 1e3 * np.array(found) for name, found in stamps.items()}


def watched_rounds(
    sessions: list[tuple[str, Any]], feeds: Raw, clock: Clock, runs: int
) -> tuple[dict[str, Times], Watch]:
    """Return what `_rounds` does, and who watched."""
    with Watch(clock) as watch:
        stamps = _rounds(sessions, feeds, clock, runs)
    watch.add(np.concatenate(list(stamps.values())))
    return stamps, watch


def _run(session: Any, feeds: Raw, clock: Clock) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return both clocks before and after a run."""
    started = clock.read()
    try:
        session.run(None, feeds)
    except Exception as error:  # likewise
        raise MeasureError(f"a network cannot be run: {str(error).splitlines()[0][:200]}") from None
    return started, clock.read()


def _effort(session: Any, feeds: Raw, threads: int) -> float:
    """Return the seconds of a core that a run takes: a busy machine needs no fewer runs, though each is longer."""
    started = time.process_time()
    (before, _), (after, _) = _run(session, feeds, Clock(0, ""))
    return min(after - before, (time.process_time() - started) / threads or math.inf)


def read_kernels(log: Path, stamps: Times, watch: Watch) -> list[tuple[str, Raw, float, float]]:
    """Return name, facts, and ms by the wall clock and of the processor, of every node that ran in the last runs.

    Args:
        log: The runtime's profile.
        stamps: Both clocks before and after these runs, as `Watch.add` takes them.
        watch: Watched them.
    """
    events = list(_read_events(log))
    whole = sorted((start, taken) for name, _, start, taken in events if name == _WHOLE_RUN)[-len(stamps) :]
    kernels = [event for event in events if event[0] != _WHOLE_RUN and whole and event[2] >= whole[0][0]]
    if not kernels:
        return []
    starts, walls = np.array([[start, taken] for _, _, start, taken in kernels]).T
    # from the profiler's clock to ours: a run ends for the profiler just before it ends here
    behind = min(ended - start - taken for ended, (start, taken) in zip(stamps[:, 1, 0], whole))  # noqa: B905
    owns = watch.own_ms(starts + behind, walls)
    return [
        (name[: -len(KERNEL_EVENT)], facts, float(wall), float(own))
        for (name, facts, _, _), wall, own in zip(kernels, walls, owns)  # noqa: B905  # Python 3.9
    ]


def _read_events(log: Path) -> Iterator[tuple[str, Raw, float, float]]:
    """Yield name, facts, start and duration in ms of every event of a profile that is a run, or a node of one.

    The runtime writes one event a line; a whole profile is too long to be parsed at once.
    """
    with log.open(encoding="utf-8") as lines:
        for line in lines:
            if KERNEL_EVENT in line or _WHOLE_RUN in line:
                found, facts = _EVENT.search(line), dict(_FACTS.findall(line))
                if found is None:  # a name with escapes, or another order
                    event = json.loads(line.rstrip().rstrip(","))
                    taken, start, name, facts = event["dur"], event["ts"], str(event["name"]), event["args"]
                else:
                    taken, start, name = found.groups()
                if name == _WHOLE_RUN or name.endswith(KERNEL_EVENT):
                    yield name, facts, 1e-3 * float(start), 1e-3 * float(taken)


def _profile(log: Path, stamps: Times, watch: Watch) -> list[list[Any]]:
    """Return [name, operator, ms] of every node as executed, over the last runs.

    A node takes what its fastest quarter of runs takes, or its middle half of the processor, if that is less.
    """
    times: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for name, facts, wall, own in read_kernels(log, stamps, watch):
        times.setdefault((name, str(facts["op_name"])), []).append((wall, own))
    nodes: list[list[Any]] = []
    for (name, operator), found in times.items():
        walls, owns = np.array(found).T
        taken = max(min(float(_low(walls)), _middle(owns)), _TICK_MS / 2)
        nodes.append([name, operator, taken * max(1, round(len(found) / len(stamps)))])
    return nodes


def _low(times: Times) -> Times:
    """Return the mean over the fastest quarter: what the machine takes when nobody disturbs it."""
    return np.asarray(np.sort(times, axis=-1)[..., : max(1, times.shape[-1] // 4)].mean(axis=-1))


def _middle(times: Times) -> float:
    """Return the mean over the middle half."""
    aside = len(times) // 4
    return float(np.mean(np.sort(times)[aside : len(times) - aside]))


def _main() -> int:
    parser = argparse.ArgumentParser(description="Times the networks of this folder and writes device.json.")
    parser.add_argument("--threads", type=int, default=1, help="of the runtime (default 1)")
    parser.add_argument("--passes", type=int, default=3, help="sets of fresh sessions (default 3)")
    parser.add_argument("--out", default=None, help="where to write (default: device.json in the folder)")
    options = parser.parse_args()
    folder = Path(__file__).resolve().parent
    target = Path(options.out) if options.out else folder / RESULT
    count = 0

    def show(name: str) -> None:
        nonlocal count
        count += 1
        print(f"\r{count} of {total}: {name:40}", end="", file=sys.stderr, flush=True)

    try:
        if options.threads < 1 or options.passes < 1:
            raise MeasureError("threads and passes: pass at least 1")
        manifest = read_manifest(folder)
        raw = _resume(manifest, target, options.threads)
        total = sum(len(_missing(manifest, raw, number)) for number in range(options.passes))
        measure_folder(folder, target, options.threads, options.passes, show)
    except (MeasureError, OSError) as error:
        print(f"measure.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nmeasure.py: stopped; start it again to go on", file=sys.stderr)
        return 1
    print(f"\nwritten: {target}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(_main())
