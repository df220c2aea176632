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
import bisect
import hashlib
import json
import os
import platform
import sys
import tempfile
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
SECONDS = 0.35
"""Of a core, spent on each network in each pass with the profiler, and as much again without."""

_COPIED = ("network", "model", "example", "sites", "barred")
"""What the results take over from the manifest."""
_RUNS = (3, 80)
_SESSION_BYTES = 1.5e9

Raw = dict[str, Any]
Progress = Callable[[str], None]


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
            json.dump(values, file, separators=(",", ":"))
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
    with tempfile.TemporaryDirectory(dir=logs) as place:
        sessions = []
        for name in names if number % 2 == 0 else names[::-1]:
            file = networks[name]["file"]
            sessions.append((name, _open(folder / file, Path(place) / file, threads, provider)))
        feeds = _feeds(manifest["inputs"])
        warm = float(np.mean([min(_effort(session, feeds, threads) for _ in range(2)) for _, session in sessions]))
        runs = min(max(int(seconds / warm), _RUNS[0]), _RUNS[1])
        _rounds(sessions, feeds, runs)
        profiles = {name: _profile(Path(session.end_profiling()), runs) for name, session in sessions}
        walls = {name: _low(times) for name, times in _rounds(sessions, feeds, runs).items()}
        for name, _ in sessions:
            if progress is not None and name != names[0]:
                progress(str(networks[name]["label"]))
    samples: list[Raw] = []
    for name in names:
        nodes, between = profiles[name]
        # A busy machine may leave no long run undisturbed. Single nodes still are, so their sum and what profiled runs
        # spend between them is a bound: the profiler itself takes time, never gives any.
        total = float(min(walls[name], sum(node[2] for node in nodes) + between))
        dense = samples[0]["total_ms"] if samples else total
        sample = {"pass": number, "network": name, "total_ms": total, "dense_ms": dense, "wall_ms": walls[name]}
        samples.append({**sample, "nodes": nodes})
    return samples


def _open(path: Path, log: Path, threads: int, provider: str) -> Any:
    options = base_options(threads)
    options.enable_profiling = True
    options.profile_file_prefix = str(log)
    try:
        return ort.InferenceSession(str(path), options, providers=list(dict.fromkeys((provider, CPU))))
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


def _rounds(sessions: list[tuple[str, Any]], feeds: Raw, runs: int) -> dict[str, list[float]]:
    """Return the milliseconds of every run; every second round goes backwards."""
    times: dict[str, list[float]] = {name: [] for name, _ in sessions}
    for turn in range(runs):
        for name, session in sessions if turn % 2 == 0 else sessions[::-1]:
            times[name].append(1e3 * _clock(session, feeds))
    return times


def _clock(session: Any, feeds: Raw) -> float:
    """Return the seconds of one run."""
    started = time.perf_counter()
    try:
        session.run(None, feeds)
    except Exception as error:  # likewise
        raise MeasureError(f"a network cannot be run: {str(error).splitlines()[0][:200]}") from None
    return time.perf_counter() - started


def _effort(session: Any, feeds: Raw, threads: int) -> float:
    """Return the seconds of a core that a run takes: a busy machine needs no fewer runs, though each is longer."""
    started = time.process_time()
    seconds = _clock(session, feeds)
    return min(seconds, (time.process_time() - started) / threads or seconds)


def _profile(log: Path, runs: int) -> tuple[list[list[Any]], float]:
    """Return [name, operator, ms] of every node as executed, and the ms between the nodes, over the last runs."""
    events = json.loads(log.read_text(encoding="utf-8"))
    whole = sorted((event["ts"], event["dur"]) for event in events if event.get("name") == "model_run")[-runs:]
    kernels = [event for event in events if str(event.get("name", "")).endswith(KERNEL_EVENT)]
    times: dict[tuple[str, str], list[float]] = {}
    inside = [0.0] * len(whole)
    starts = [start for start, _ in whole]
    for event in sorted(kernels, key=lambda event: float(event["ts"])):
        run = bisect.bisect_right(starts, event["ts"]) - 1
        if run >= 0:
            key = (event["name"][: -len(KERNEL_EVENT)], str(event["args"]["op_name"]))
            times.setdefault(key, []).append(event["dur"] / 1e3)
            inside[run] += event["dur"] / 1e3
    between = _low([duration / 1e3 - spent for (_, duration), spent in zip(whole, inside)])  # noqa: B905  # Python 3.9
    nodes = [
        [name, operator, _low(found) * max(1, round(len(found) / runs))] for (name, operator), found in times.items()
    ]
    return nodes, between


def _low(times: list[float]) -> float:
    """Return the mean over the fastest quarter: what the machine takes when nobody disturbs it."""
    return float(np.mean(sorted(times)[: max(1, len(times) // 4)]))


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
