from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from convsurgeon.base.errors import LatencyError
from convsurgeon.onnx.files import file_bytes, load_checked, random_feed
from convsurgeon.onnxnet.measuring.engine import Engine
from convsurgeon.onnxnet.session import session_options
from convsurgeon.timing import interleaved as sampling
from convsurgeon.timing.comparison import Comparison, compare
from convsurgeon.timing.interleaved import _order
from convsurgeon.timing.machine import read_machine
from convsurgeon.timing.verdict import BLOCKS, judge
from tests.onnx.small import conv_stack


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("latency")
    return [conv_stack(folder / f"{layers}.onnx", layers) for layers in (1, 8, 3)]


@pytest.fixture(scope="module")
def timing(files: list[Path]) -> Comparison:
    return compare(*files, pairs=50, progress=False)


def test_one_row_per_file_and_the_baseline_first(timing: Comparison, files: list[Path]) -> None:
    assert [row.name for row in timing.rows] == ["1.onnx", "8.onnx", "3.onnx"]
    assert timing.rows[0].verdict == "baseline"
    assert (timing.speedup, timing.interval, timing.verdict) == (
        timing.rows[1].speedup,
        timing.rows[1].interval,
        timing.rows[1].verdict,
    )
    assert [row.size_bytes for row in timing.rows] == [path.stat().st_size for path in files]
    assert timing.pairs == 50
    assert timing.noise >= 1
    assert timing.drift > 0


def test_the_figures_hang_together(timing: Comparison) -> None:
    for row in timing.rows:
        assert 0 < row.best_ms <= row.p50_ms <= row.p90_ms
        assert row.create_ms > 0
        assert row.first_ms > 0
        assert row.interval[0] <= row.speedup <= row.interval[1]


def test_it_prints_and_saves(timing: Comparison) -> None:
    text = str(timing)
    for word in (
        "8.onnx",
        "median, ms",
        "90 %, ms",
        "baseline",
        "from itself",
        "threads 1",
        "level all",
        "onnxruntime",
        "at the beginning",
    ):
        assert word in text
    values = json.loads(json.dumps(timing.to_dict(), allow_nan=False))
    assert values["verdict"] == timing.verdict
    assert values["rows"][1]["interval"] == list(timing.interval)
    assert values["machine"]["cores"] >= 1


def test_every_order_comes_up() -> None:
    orders = {tuple(_order(3, turn)) for turn in range(6)}
    assert len(orders) == 6


def test_rounds_are_interleaved_and_samples_equal(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    clocked: list[int] = []
    monkeypatch.setattr(sampling, "_time", lambda session, *_: clocked.append(id(session)) or (1e-3, 1e-3))
    found = sampling.time_interleaved(files[:2], 50, engine=Engine(), batch=1, sizes={}, seed=0, progress=False)
    assert [entry.samples.shape for entry in found] == [(BLOCKS, 10)] * 3
    assert [entry.runs.size for entry in found] == [150] * 3  # three runs of 1 ms make a sample of 3 ms
    first_round = clocked[30 : 30 + 9]  # after ten warm-up runs of each of the three sessions
    assert [len({*first_round[start : start + 3]}) for start in (0, 3, 6)] == [1, 1, 1]
    assert len({*first_round}) == 3


@pytest.mark.parametrize(("seconds", "rounds"), [(0.9, 3), (1.0, 1)])
def test_slow_files_have_few_rounds(
    seconds: float, rounds: int, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of a second would have made 100 rounds of three sessions take five minutes."""
    runs: list[int] = []
    monkeypatch.setattr(sampling, "_SAMPLE_S", 0.0)
    monkeypatch.setattr(sampling, "_time", lambda *_: runs.append(1) or (seconds, seconds))
    found = sampling.time_interleaved(files[:2], 100, engine=Engine(), batch=1, sizes={}, seed=0, progress=False)
    assert [entry.samples.shape for entry in found] == [(BLOCKS, rounds)] * 3
    assert judge(*(entry.samples for entry in found)).word == "no measurable difference"
    assert len(runs) == 3 * (2 + 2 + BLOCKS * rounds)  # after the first block the first run of a session warms it up


def test_sessions_are_honest() -> None:
    made = session_options(2, "extended")
    assert (made.intra_op_num_threads, made.inter_op_num_threads) == (2, 1)
    assert made.get_session_config_entry("session.intra_op.allow_spinning") == "1"  # as in use, within a run
    assert made.get_session_config_entry("session.force_spinning_stop") == "1"  # but idle sessions leave the cores
    assert made.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED


def test_the_machine_says_who_it_is() -> None:
    found = read_machine()
    assert found.cpu
    assert found.cores >= 1
    assert found.onnxruntime in str(found)


def test_inputs_are_made_from_the_graph(tmp_path: Path) -> None:
    kinds = {
        "image": TensorProto.FLOAT,
        "index": TensorProto.INT64,
        "flag": TensorProto.BOOL,
        "half": TensorProto.FLOAT16,
    }
    shapes: dict[str, list[int | str]] = {"image": ["n", 3, "h", "w"], "index": [2], "flag": [], "half": ["length", 2]}
    inputs = [helper.make_tensor_value_info(name, kind, shapes[name]) for name, kind in kinds.items()]
    nodes = [helper.make_node("Identity", [name], [name + "_out"]) for name in kinds]
    outputs = [helper.make_tensor_value_info(name + "_out", kind, shapes[name]) for name, kind in kinds.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    path = tmp_path / "inputs.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    feed = random_feed(path, seed=0, batch=4, sizes={"w": 9, "length": 5})
    assert feed["image"].shape == (4, 3, 64, 9)
    assert feed["image"].dtype == np.float32
    assert not feed["index"].any()
    assert feed["flag"].item() is True
    assert feed["half"].shape == (5, 2)
    assert feed["half"].dtype == np.float16
    again = random_feed(path, seed=0, batch=4, sizes={"w": 9, "length": 5})
    assert np.array_equal(feed["image"], again["image"])


def test_different_inputs_are_noted(tmp_path: Path) -> None:
    small, large = conv_stack(tmp_path / "a.onnx", 1), conv_stack(tmp_path / "b.onnx", 1, size=20)
    assert any("different inputs" in note for note in compare(small, large, pairs=50, progress=False).notes)


# Files that cannot be timed


def one_line(error: pytest.ExceptionInfo[LatencyError]) -> None:
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; export it again"),
        (b"garbage, not a model", "is not a"),
        (b"\x00" * 100, "is not a"),
        (None, "no such file"),
    ],
)
def test_what_is_no_model(content: bytes | None, message: str, files: list[Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.onnx"
    if content is not None:
        bad.write_bytes(content)
    with pytest.raises(LatencyError, match=rf"bad\.onnx: {message}") as error:
        compare(files[0], bad, progress=False)
    one_line(error)


def test_a_truncated_model(files: list[Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(files[0].read_bytes()[:-50])
    with pytest.raises(LatencyError, match=r"bad\.onnx: is not a") as error:
        compare(files[0], bad, progress=False)
    one_line(error)


def test_weights_that_are_not_there(files: list[Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.onnx"
    onnx.save(onnx.load(files[0]), bad, save_as_external_data=True, location="bad.data", size_threshold=0)
    (tmp_path / "bad.data").unlink()
    with pytest.raises(LatencyError, match=r"bad\.onnx: is not a valid ONNX file: .*bad\.data") as error:
        compare(files[0], bad, progress=False)
    one_line(error)


def test_external_weights_count(files: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "split.onnx"
    onnx.save(onnx.load(files[0]), path, save_as_external_data=True, location="split.data", size_threshold=0)
    expected = path.stat().st_size + (tmp_path / "split.data").stat().st_size
    assert file_bytes(path, load_checked(path)) == expected > 16 * 16 * 9 * 4


def _single(path: Path, operator: str, kind: int, **attributes: Any) -> Path:
    ends = [helper.make_tensor_value_info(name, kind, [1, 4]) for name in "xy"]
    graph = helper.make_graph(
        [helper.make_node(operator, ["x"], ["y"], operator, **attributes)], "g", ends[:1], ends[1:]
    )
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("made.up", 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), path)
    return path


def test_an_unknown_operator(files: list[Path], tmp_path: Path) -> None:
    bad = _single(tmp_path / "bad.onnx", "Nonsense", TensorProto.FLOAT, domain="made.up")
    with pytest.raises(LatencyError, match=r"bad\.onnx: onnxruntime cannot load it: .*Nonsense") as error:
        compare(files[0], bad, progress=False)
    one_line(error)


def test_an_input_that_cannot_be_made_up(files: list[Path], tmp_path: Path) -> None:
    bad = _single(tmp_path / "bad.onnx", "Identity", TensorProto.STRING)
    with pytest.raises(LatencyError, match=r"bad\.onnx: has an input of type string"):
        compare(files[0], bad, progress=False)


def test_strange_requests(files: list[Path]) -> None:
    with pytest.raises(LatencyError, match="needs two files or more"):
        compare(files[0])
    with pytest.raises(LatencyError, match=r"pairs=10: too few for an interval"):
        compare(*files, pairs=10)
    with pytest.raises(LatencyError, match="batch=0: pass 1 or more"):
        compare(*files, batch=0)
    with pytest.raises(LatencyError, match="is a folder, a device or a pipe; pass the path"):
        compare(files[0], files[0].parent)
    with pytest.raises(LatencyError, match="would take days; pass 100,000 or fewer"):
        compare(*files, pairs=10**30)
    with pytest.raises(LatencyError, match=r"level 'best': choose one of all, extended"):
        compare(*files, level="best")  # type: ignore[arg-type]
    with pytest.raises(LatencyError, match="threads=0: this machine has"):
        compare(*files, threads=0)


def test_an_interrupt_passes_through(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(sampling, "_run_rounds", interrupt)
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        compare(*files, progress=True)
