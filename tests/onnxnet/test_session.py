"""Sessions: refused options, other providers, and a canary for the names that a new onnxruntime may change."""

from __future__ import annotations

import ast
import json
import platform
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime import quantization
from onnxruntime.quantization.calibrate import CalibrationDataReader

from convsurgeon.base.errors import LatencyError
from convsurgeon.onnxnet import session
from convsurgeon.onnxnet.measuring import profiles
from convsurgeon.onnxnet.session import Level, open_session, session_options
from tests.onnxnet.files import Graph, saved

FEED = {"x": np.zeros((1, 16, 9, 9), "float32")}


def _net() -> onnx.ModelProto:
    """Make what the runtime fuses and reorders: convs, each with a ReLU or a gate behind it."""
    graph = Graph(17)
    graph.conv("x", "a", "one", 16, 16, pads=[1] * 4)
    graph.node("Relu", ["a"], "b", "relu")
    graph.conv("b", "c", "two", 16, 16, pads=[1] * 4)
    graph.node("Sigmoid", ["c"], "d", "gate")
    graph.node("Mul", ["c", "d"], "y", "product")
    return graph.model(inputs=[("x", [1, 16, 9, 9])])


def _executed(level: Level, folder: Path) -> tuple[dict[str, str], list[onnx.NodeProto]]:
    """Return the operators of the profiler's events by their names, and the nodes of the optimised graph."""
    options = session_options(1, level)
    options.enable_profiling = True
    options.profile_file_prefix, options.optimized_model_filepath = str(folder / "p"), str(folder / "optimised.onnx")
    made = open_session(_net(), options)
    made.run(None, FEED)
    events = json.loads(Path(made.end_profiling()).read_text(encoding="utf-8"))
    names = {event["name"]: event["args"]["op_name"] for event in events if event["cat"] == "Node"}
    return names, list(onnx.load(folder / "optimised.onnx").graph.node)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the blocked layout of x86")
def test_canary_for_what_the_runtime_calls_its_own_nodes(tmp_path: Path) -> None:
    names, nodes = _executed("all", tmp_path)
    assert all(name.endswith(profiles.KERNEL_EVENT) for name in names)
    bare = {name.removesuffix(profiles.KERNEL_EVENT): operator for name, operator in names.items()}
    assert [name for name, operator in bare.items() if operator == "Conv"] == [
        f"b{session.BLOCKED}",
        f"c{session.BLOCKED}",
    ]
    assert {operator for operator in bare.values() if operator.startswith("Reorder")} == set(session.LAYOUT_CHANGES[:2])
    assert {node.op_type for node in nodes if node.domain == session.BLOCKED_DOMAIN} >= {"Conv", "ReorderInput"}
    assert {session.strip_suffixes(name) for name in bare} == {"ReorderInput", "b", "c", "product", "ReorderOutput"}


def test_a_profile_is_read_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events are looked through, not parsed: nothing is parsed but what looks otherwise, and both say the same."""
    _executed("all", tmp_path)
    log = next(tmp_path.glob("p_*"))
    events = [event for event in json.loads(log.read_text(encoding="utf-8")) if event["cat"] == "Node"]
    wanted = [(one["name"], one["args"]["op_name"], one["args"]["node_index"], one["ts"], one["dur"]) for one in events]
    spaced = tmp_path / "spaced.json"
    spaced.write_text("\n".join(json.dumps(event) for event in events), encoding="utf-8")

    def read(path: Path) -> list[tuple[object, ...]]:
        found = [one for one in profiles._read_events(path) if one[0] != "model_run"]
        return [(name, a["op_name"], a["node_index"], round(1e3 * t), round(1e3 * ms)) for name, a, t, ms in found]

    assert read(spaced) == wanted
    monkeypatch.setattr(profiles.json, "loads", lambda text: ast.literal_eval(text) if len(text) < 100 else None)
    assert read(log) == wanted


def test_canary_for_fused_convs(tmp_path: Path) -> None:
    names, nodes = _executed("extended", tmp_path)
    assert names[f"one{profiles.KERNEL_EVENT}"] == session.FUSED_CONVS[0]
    assert ("com.microsoft", session.FUSED_CONVS[0]) in {(node.domain, node.op_type) for node in nodes}


def test_canary_for_what_the_quantiser_calls_its_nodes(tmp_path: Path) -> None:
    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = [FEED]

        def get_next(self) -> dict[str, np.ndarray] | None:  # type: ignore[type-arg]
            return self.left.pop() if self.left else None

    source = saved(_net(), tmp_path)
    quantization.quantize_static(source, tmp_path / "int8.onnx", Reader(), per_channel=True)
    graph = onnx.load(tmp_path / "int8.onnx").graph
    assert f"one.weight{session.QUANTISED_WEIGHT}" in {tensor.name for tensor in graph.initializer}
    assert f"b{session.DEQUANTISED}" in {name for node in graph.node for name in node.output}


def test_threads_spin_within_a_run_and_stop_with_it() -> None:
    made = session_options(2)
    for key in ("session.intra_op.allow_spinning", "session.force_spinning_stop"):
        assert made.get_session_config_entry(key) == "1"


def test_options_and_providers_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LatencyError, match="fastest"):
        session_options(1, "fastest")  # type: ignore[arg-type]
    with pytest.raises(LatencyError, match="threads=0"):
        session_options(0)
    with pytest.raises(LatencyError, match=r"nothing\.onnx"):
        open_session(tmp_path / "nothing.onnx")


def test_sessions_are_opened_in_one_place() -> None:
    """But for what is timed, on a device, too, and for what a bundle tells its reader."""
    root = Path(session.__file__).parents[1]
    found = {path.name for path in root.rglob("*.py") if "ort.InferenceSession(" in path.read_text(encoding="utf-8")}
    assert found == {"session.py", "engine.py", "readme.py", "running.py"}
