"""The runtime's profile: what every node took, by the wall clock and of the processor."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .clock import Times, Watch

Kernel = tuple[str, dict[str, Any], float, float]
"""Name, facts, and two times in ms."""

KERNEL_EVENT = "_kernel_time"
"""End of the name of a profiler's event that is the run of one node."""

_WHOLE_RUN = "model_run"
_EVENT = re.compile(r'"dur" :(\d+),"ts" :(\d+),"ph" : "X","name" :("(?:[^"\\]|\\.)*")')
_FACTS = ("op_name", "node_index")


def read_kernels(log: Path, stamps: Times, watch: Watch) -> list[Kernel]:
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


def _read_events(log: Path) -> Iterator[Kernel]:
    """Yield name, facts, start and duration in ms of every event of a profile that is a run, or a node of one.

    The runtime writes one event a line. To parse all of them would take longer than to run the network, so only what is
    used is looked for, which are the operator and the number of a node.
    """
    with log.open(encoding="utf-8") as lines:
        for line in lines:
            if KERNEL_EVENT in line or _WHOLE_RUN in line:
                name, facts, start, taken = _read_event(line)
                if name == _WHOLE_RUN or name.endswith(KERNEL_EVENT):
                    yield name, facts, 1e-3 * start, 1e-3 * taken


def _read_event(line: str) -> tuple[str, dict[str, Any], int, int]:
    """Return name, facts, start and duration (us) of an event; parse the line if it is written otherwise."""
    found = _EVENT.search(line)
    if found is None:
        event = json.loads(line.rstrip().rstrip(","))
        return str(event["name"]), event["args"], event["ts"], event["dur"]
    taken, start, name = found.groups()
    facts = ((fact, line.partition(f'"{fact}" : "')[2].partition('"')[0]) for fact in _FACTS)
    return json.loads(name), {fact: value for fact, value in facts if value}, int(start), int(taken)
