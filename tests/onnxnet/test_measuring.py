"""What the measuring script makes of a busy machine: made-up clocks, and profiles as the runtime writes them."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from convsurgeon.onnxnet.measuring import folder, rounds
from convsurgeon.onnxnet.measuring.clock import Clock, Watch, busy_share
from convsurgeon.onnxnet.measuring.engine import Engine
from convsurgeon.onnxnet.measuring.profiles import read_kernels


def _stamps(*clocks: tuple[float, float, float, float]) -> np.ndarray:  # type: ignore[type-arg]
    """Both clocks before and after every run: wall, own, wall, own."""
    return np.array(clocks, dtype=float).reshape(-1, 2, 2)


def _log(path: Path, *events: tuple[str, float, float]) -> Path:
    lines = [
        json.dumps({"cat": "Node", "dur": taken, "ts": start, "name": name, "args": {"op_name": "Conv"}})
        for name, start, taken in events
    ]
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n")
    return path


def test_waiting_for_the_processor_is_not_a_nodes_time(tmp_path: Path) -> None:
    """Two nodes of 10 ms; the second one waited for 30 ms more, as the notes tell."""
    watch = Watch(Clock(True))
    watch._noted = [(1000.0 + wall, own) for wall, own in ((10, 10), (15, 15), (45, 15), (50, 20))]
    stamps = _stamps((1000, 0, 1050, 20))
    watch.add(stamps)
    events = [("model_run", 500, 50_000), ("a_kernel_time", 500, 10_000), ("b_kernel_time", 10_500, 40_000)]
    found = read_kernels(_log(tmp_path / "log.json", *events), stamps, watch)
    assert [(name, wall) for name, _, wall, _ in found] == [("a", 10), ("b", 40)]
    assert [own for *_, own in found] == pytest.approx([10, 10])


def test_names_with_escapes_are_read(tmp_path: Path) -> None:
    stamps = _stamps((0, 0, 1, 1))
    watch = Watch(Clock(False))
    watch.add(stamps)
    name = 'a"b\\c'
    log = _log(tmp_path / "log.json", ("model_run", 0, 900), (f"{name}_kernel_time", 0, 800))
    assert [found for found, *_ in read_kernels(log, stamps, watch)] == [name]


def test_only_the_last_runs_count(tmp_path: Path) -> None:
    events = [("model_run", 0, 900), ("a_kernel_time", 0, 800), ("model_run", 1000, 300), ("a_kernel_time", 1000, 200)]
    stamps = _stamps((5, 0, 5.3, 0.3))
    watch = Watch(Clock(False))
    watch.add(stamps)
    ((name, facts, wall, own),) = read_kernels(_log(tmp_path / "log.json", *events), stamps, watch)
    assert (name, facts["op_name"], wall, own) == ("a", "Conv", 0.2, 0.2)  # with two threads the wall clock counts


def test_the_processor_time_is_the_calling_threads_own() -> None:
    clock = Engine(1).clock()
    before = clock.read()
    time.sleep(0.05)
    wall, own = np.subtract(clock.read(), before)
    assert wall >= 0.05
    assert own < 0.5 * wall
    for other in (
        Engine(2).clock(),
        Engine(1, "CUDAExecutionProvider").clock(),
        Engine(1, "openvino", {"device_type": "GPU"}).clock(),
    ):
        wall, own = other.read()
        assert wall == own


def test_rounds_end_when_the_ratio_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)

    def rounds_at(noise: float) -> int:
        def made_up(sessions: list[tuple[str, float]], _feeds: object, _clock: object, runs: int) -> object:
            def stamps(ms: float) -> np.ndarray:  # type: ignore[type-arg]
                taken = ms * (1 + noise * random.random(runs))
                return np.stack([np.zeros((runs, 2)), np.stack([taken, taken], axis=1)], axis=1)

            return {name: stamps(ms) for name, ms in sessions}

        monkeypatch.setattr(rounds, "_rounds", made_up)
        found = rounds.time_rounds([("dense", 2.0), ("one", 1.0)], {}, Clock(True), 160)
        assert {times.shape for times in found.values()} == {(len(found["one"]), 2)}
        return len(found["one"])

    assert 2 * rounds_at(0.001) == rounds._FIRST_RUNS
    assert 2 * rounds_at(1.0) == 160


def test_no_place_in_the_round_is_better_than_another() -> None:
    """A network that ran just before finds its weights in the caches: that may not favour those at the ends."""
    now, last = [0.0], [""]

    class Session:
        def __init__(self, name: str) -> None:
            self.name = name

        def run(self, *_: object) -> None:
            now[0] += 1.0 if last[0] == self.name else 2.0
            last[0] = self.name

    class Ticks(Clock):
        def read(self) -> tuple[float, float]:
            return now[0], now[0]

    sessions = [(name, Session(name)) for name in "abcde"]
    times = rounds.time_rounds(sessions, {}, Ticks(True), 80)
    assert {float(rounds.low(one[:, 1])) for one in times.values()} == {1e3}


@pytest.mark.parametrize("threads", [1, 1000])
def test_the_share_that_others_take_is_a_share(threads: int) -> None:
    assert 0 <= busy_share(threads) <= 1


def test_large_values_and_large_weights_leave_room_for_fewer_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "free_bytes", lambda: 1e12)

    def groups(weight_bytes: float, activation_bytes: float) -> list[int]:
        networks = {name: {"weight_bytes": weight_bytes} for name in ("dense", *"abcdefgh")}
        manifest = {"networks": networks, "activation_bytes": activation_bytes}
        return [len(group) for group in folder._groups(manifest, {"samples": []}, 0)]

    assert groups(1e6, 1e6) == [1 + folder.GROUP] * 2
    assert groups(1e6, 0.3e9) == [3] * 4
    assert groups(1e6, 2e9) == groups(1e9, 0) == [2] * 8
