"""Where the time goes: the runtime's profile of every node, named after the modules they came from.

Files written by `export` name nodes and values after modules. What the runtime fuses keeps one of those names, with
suffixes of its own, which are taken off again. A layout change that it inserted belongs to no module: it is a cost of
the graph's form and is shown as such.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from onnx import GraphProto, NodeProto
from tabulate import tabulate

from convsurgeon.base.errors import LatencyError, first_line
from convsurgeon.base.files import scratch
from convsurgeon.onnx.files import load_checked, random_feed
from convsurgeon.onnxnet import proto
from convsurgeon.onnxnet.measuring.engine import CPU, Engine, read_profile
from convsurgeon.onnxnet.measuring.rounds import watched_rounds
from convsurgeon.onnxnet.session import Level, check_engine, open_timed, run_session, strip_suffixes

LAYOUT = "(layout)"
"""Stands for nodes that the runtime inserted."""

_NUMBER = re.compile(r"_\d+$")
_WARMUP, _LEAST = 3, 4
_MOST_S = 2.0


@dataclass(frozen=True)
class NodeShare:
    """One executed node."""

    name: str
    """Dotted name of the node in the file, or what the runtime calls a node of its own."""
    operator: str
    ms: float
    """Median over the runs."""
    share: float
    """Of the time spent in nodes."""
    inserted: bool
    """Whether the runtime made it: a change of layout that no module asked for."""


@dataclass(frozen=True)
class Profile:
    """Where the time of one file goes, in the order of execution."""

    nodes: tuple[NodeShare, ...]
    threads: int
    level: Level

    @property
    def total_ms(self) -> float:
        """Time spent in nodes; what the runtime does between them, and the profiler itself, are not in it."""
        return sum(node.ms for node in self.nodes)

    def by_owner(self, names: Iterable[str]) -> dict[str, float]:
        """Return milliseconds per module: a node belongs to the longest of `names` that its own name begins with.

        `layer1.conv.branches.0.depthwise` belongs to `layer1.conv`, and so does `layer1.conv_1`, its second call.
        """
        known, times = set(names), dict[str, float]()
        for node in self.nodes:
            key = LAYOUT if node.inserted else _find_owner(node.name, known)
            times[key] = times.get(key, 0.0) + node.ms
        return times

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"total_ms": self.total_ms, **msgspec.to_builtins(self)}

    def __str__(self) -> str:
        rows = [(node.name, node.operator, f"{1e3 * node.ms:.1f}", f"{node.share:.1%}") for node in self.nodes]
        table = tabulate(rows, headers=("node", "operator", "us", "share"), disable_numparse=True)
        return f"{table}\n{self.total_ms:.3f} ms in nodes, threads {self.threads}, level {self.level}"


def profile(
    path: str | Path,
    *,
    runs: int = 30,
    threads: int = 1,
    level: Level = "all",
    provider: str = CPU,
    options: Mapping[str, object] | None = None,
    batch: int = 1,
    sizes: Mapping[str, int] | None = None,
) -> Profile:
    """Profile a file on random inputs.

    Args:
        path: Any ONNX file.
        runs: Measured runs, after three that are not; fewer where they would take more than two seconds.
        threads: Of the runtime.
        level: The runtime's graph optimisations.
        provider: Execution provider of onnxruntime, or "openvino".
        options: Of the provider or the session.
        batch: For a symbolic first dimension.
        sizes: For other symbolic dimensions, by name.

    Raises:
        LatencyError: The file cannot be run.
    """
    file = Path(path)
    model = load_checked(file)
    engine = Engine(threads, provider, options or {}, level)
    check_engine(engine)
    with scratch() as folder:
        session = open_timed(file, engine, folder / "profile")
        feed = random_feed(file, 0, batch, dict(sizes or {}))
        started = time.perf_counter()
        for _ in range(_WARMUP):
            run_session(session, feed, file)
        most = int(_MOST_S * _WARMUP / (time.perf_counter() - started))
        stamps, watch = watched_rounds([("", session)], feed, engine.clock(), max(min(runs, max(most, _LEAST)), 1))
        try:
            kernels = read_profile(session, stamps[""], watch)
        except (OSError, ValueError, KeyError) as error:
            raise LatencyError(f"{file}: the runtime's profile cannot be read: {first_line(error)}") from error
    return Profile(_read_shares(kernels, model.graph), threads, level)


def _read_shares(
    kernels: Iterable[tuple[str, dict[str, Any], float, float]], graph: GraphProto
) -> tuple[NodeShare, ...]:
    """Return the median time of every node: of the processor, where that is known."""
    times: dict[tuple[str, str, str], list[float]] = {}
    for name, facts, _, own_ms in kernels:
        times.setdefault((str(facts.get("node_index", "")), name, str(facts["op_name"])), []).append(own_ms)
    medians = {key: float(np.median(values)) for key, values in times.items()}
    total = sum(medians.values()) or 1.0
    made = proto.producers(graph)
    known = {node.name: node for node in graph.node} | made
    shares = []
    for (_, called, operator), ms in medians.items():
        name = _find_node(called, known)
        node: NodeProto | None = known.get(name)
        # The runtime calls a conv with a ReLU in it after the ReLU.
        while node is not None and operator.endswith("Conv") and node.op_type != "Conv":
            node = made.get(node.input[0]) if node.input else None
        own = str(node.name or node.output[0]) if node is not None else name
        shares.append(NodeShare(own, operator, ms, ms / total, inserted=name not in known))
    return tuple(shares)


def _find_node(called: str, known: Mapping[str, NodeProto]) -> str:
    """Return the file's name for a node: the longest known name that what the runtime calls it begins with."""
    for name in (called, strip_suffixes(called)):
        if name in known:
            return name
    begun = [one for one in known if one and called.startswith(one + "_")]
    return max(begun, key=len, default=called)


def _find_owner(name: str, known: set[str]) -> str:
    """Return the longest known beginning of a dotted name, also without the number of a call; else the name itself."""
    for one in (name, _NUMBER.sub("", name)):
        while one:
            if one in known:
                return one
            one = one.rpartition(".")[0]
    return name
