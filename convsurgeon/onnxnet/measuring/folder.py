"""A folder of networks, timed pass by pass.

A pass opens fresh sessions on the dense network and a few candidates of the same precision, runs them in turns, first
with the runtime's profiler and then without it, and keeps for every node the mean over its fastest quarter. Times of
one pass are to be compared with the dense network of the same pass only: the machine may have been busier in another.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .clock import Times, Watch, busy_share
from .engine import SMALLEST, Engine, MeasureError, fuses, read_profile
from .files import DENSE_OF, Raw, dense_of, missing, read_manifest, resume, write_json
from .place import free_bytes, heat
from .rounds import effort, faster, low, make_feeds, middle, scatter, time_alone, time_rounds, watched_rounds

GROUP = 4
"""Candidates that are open at once, beside the dense network; their results are written together."""
SECONDS = 0.25
"""Of a core, spent at most on each network in each pass, and a quarter of it with the profiler."""
SLOW_S = 0.1
"""Of a core, that a run takes from which on the profiler's own time does not show in it: none is made without it."""
LONG_S, LONG_PASSES = 1.0, 2
"""The same from which on so many passes of one round tell enough: what disturbs a run is short beside it."""

_LEAST_RUNS, _LEAST_IF_LONG = 4, 2
_MOST = ((0.25, 30), (1.0, 240))
"""Share of the seconds, and most runs: with the profiler, and without."""
_TICK_MS = 1e-3
"""Of the profiler's clock."""
_SESSION_BYTES = 2e9
"""Of all sessions that are open at once: weights and values twice each, and what any session takes."""
_LARGE_BYTES = 2.5e8
"""Of a network's values, from which on a session keeps none of their memory between its runs."""
_ALONE_S = 0.05
"""Spent on each stretch."""
STRETCH = "Stretch"
"""Stands where the operator of a node does."""
_LEAST_SHARE = 0.05
"""Of its time, that a stretch keeps at least when what every run takes is taken off."""

Progress = Callable[[str, float], None]


class Stretches:
    """What stretches of networks take, each timed alone and once in a pass, as far as they have been timed."""

    def __init__(self, folder: Path, manifest: dict[str, Any], engine: Engine) -> None:
        self._folder, self._inputs, self._engine = folder, manifest.get("stretches", {}), engine
        self._times: dict[str, float] = {}

    def share(self, network: dict[str, Any], total: float) -> list[list[Any]]:
        """Return [name, operator, ms] of every stretch of a network, which share what the whole takes."""
        empty = self._ms("", SMALLEST, {"x": np.zeros(1, np.float32)})
        alone = {}
        for name, file in network["stretches"].items():
            ms = self._ms(file, self._folder / file, make_feeds(self._inputs[file]))
            alone[name] = max(ms - empty, _LEAST_SHARE * ms)
        scale = total / sum(alone.values())
        return [[name, STRETCH, scale * ms] for name, ms in alone.items()]

    def _ms(self, name: str, model: Path | bytes, feeds: dict[str, Any]) -> float:
        if name not in self._times:
            times = time_alone(self._engine.open(model), feeds, self._engine.clock(), _ALONE_S)
            self._times[name] = float(low(times))
        return self._times[name]


def measure_folder(
    folder: Path,
    target: Path,
    engine: Engine,
    passes: int,
    progress: Progress,
    *,
    power: str = "",
) -> Raw:
    """Time every network of a folder that the target file does not hold yet, and write the results there bit by bit.

    Args:
        folder: With the manifest and the networks.
        target: Where the results are, and go.
        engine: How the networks are run.
        passes: Sets of fresh sessions; of networks that take long at most `LONG_PASSES`.
        progress: Called with the label of a network whenever it has been timed in a pass, and how many passes that
            stands for: more than one where networks take so long that there are fewer.
        power: The device's power mode, as its user calls it.
    """
    manifest = read_manifest(folder)
    if fuses(engine.provider) and not manifest.get("stretches"):
        raise MeasureError(f"{folder}: is not for {engine.provider}; write it with --provider {engine.provider}")
    raw = resume(manifest, target, engine, power)
    for number in range(passes):
        alone = Stretches(folder, manifest, engine)
        for group in _groups(manifest, raw, number):
            raw["samples"] += _group(folder, manifest, group, number, engine, alone)
            write_json(target, raw)
            stands_for = max(passes / LONG_PASSES, 1.0) if is_long(raw["samples"][-1]["dense_ms"]) else 1.0
            for name in group[1:]:
                progress(str(manifest["networks"][name]["label"]), stands_for)
    return raw


def _groups(manifest: Raw, raw: Raw, number: int) -> Iterator[list[str]]:
    """Yield what to open together within the memory, the dense network first; that alone if there is no candidate."""
    networks = manifest["networks"]
    room, flow = min(_SESSION_BYTES, 0.4 * free_bytes()), 2.0 * float(manifest.get("activation_bytes", 0)) + 5e7
    for dense in DENSE_OF.values():
        own = [name for name in networks if dense_of(networks[name]) == dense]
        names = [name for name in missing(manifest, raw, number) if name in own]
        known = [sample["total_ms"] for sample in raw["samples"] if sample["network"] == dense]
        if number >= LONG_PASSES and any(map(is_long, known)):
            continue
        if len(own) == 1 and not known:
            yield own
        names = names if number % 2 == 0 else names[::-1]
        while names:
            group = [dense, names[0]]
            for name in names[1:GROUP]:
                if sum(2.0 * float(networks[one]["weight_bytes"]) + flow for one in (*group, name)) > room:
                    break
                group.append(name)
            yield group
            names = names[len(group) - 1 :]


def is_long(ms: float) -> bool:
    """Return whether a network whose runs take so many milliseconds is timed in fewer passes."""
    return ms >= 1e3 * LONG_S


def _group(
    folder: Path,
    manifest: Raw,
    names: list[str],
    number: int,
    engine: Engine,
    alone: Stretches,
) -> list[Raw]:
    """Time the dense network, which is the first, and some candidates in one pass, by node and in all."""
    networks, clock, threads, fused = manifest["networks"], engine.clock(), engine.threads, fuses(engine.provider)
    large = float(manifest.get("activation_bytes", 0)) > _LARGE_BYTES
    with tempfile.TemporaryDirectory() as place:
        sessions = []
        for name in names if number % 2 == 0 else names[::-1]:
            file = networks[name]["file"]
            session = engine.open(folder / file, None if fused else Path(place) / file)
            sessions.append((name, engine.sparing(session) if large else session))
        feeds = make_feeds(manifest["inputs"])
        warm = float(np.mean([_warm_up(session, feeds, threads) for _, session in sessions]))
        least = _LEAST_IF_LONG if is_long(1e3 * warm) else _LEAST_RUNS
        most = [min(max(int(share * SECONDS / warm), least), limit) for share, limit in _MOST]
        stamps, watch = watched_rounds(sessions, feeds, clock, 1 if fused else most[0])
        profiles = {} if fused else {name: _profile(one, stamps[name], watch) for name, one in sessions}
        busy = busy_share(threads)
        if fused or warm < SLOW_S:
            times = time_rounds(sessions, feeds, clock, most[1])
        else:
            times = {name: faster(one) for name, one in stamps.items()}
    samples: list[Raw] = []
    for name in names:
        wall, total = (float(low(times[name][:, column])) for column in (0, 1))
        dense = samples[0]["total_ms"] if samples else total
        off = max(scatter(times[name][:, 1], times[names[0]][:, 1]))
        sample = {"pass": number, "network": name, "total_ms": total, "dense_ms": dense, "wall_ms": wall, **heat()}
        nodes = alone.share(networks[name], total) if fused else profiles[name]
        samples.append({**sample, "scatter": off, "busy": busy, "nodes": nodes})
    return samples


def _warm_up(session: Any, feeds: dict[str, Any], threads: int) -> float:
    """Return the seconds of a core that a run takes: the second one, unless that would be a long one."""
    first = effort(session, feeds, threads)
    return first if first >= SLOW_S else min(first, effort(session, feeds, threads))


def _profile(session: Any, stamps: Times, watch: Watch) -> list[list[Any]]:
    """Return [name, operator, ms] of every node as executed, over the last runs.

    A node takes what its fastest quarter of runs takes, or its middle half of the processor, if that is less.
    """
    times: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for name, facts, wall, own in read_profile(session, stamps, watch):
        times.setdefault((name, str(facts["op_name"])), []).append((wall, own))
    nodes: list[list[Any]] = []
    for (name, operator), found in times.items():
        walls, owns = np.array(found).T
        taken = max(min(float(low(walls)), middle(owns)), _TICK_MS / 2)
        nodes.append([name, operator, taken * max(1, round(len(found) / len(stamps)))])
    return nodes
