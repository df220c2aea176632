"""How networks are run: providers and options that are there, and a sentence for those that are not."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import convsurgeon as cs
from convsurgeon.base.errors import LatencyError
from convsurgeon.onnxnet.measuring.engine import CPU, OPENVINO, Engine
from convsurgeon.onnxnet.measuring.options import why_unknown
from convsurgeon.onnxnet.session import check_engine
from tests.benchmarks.measure import memory_mb
from tests.onnx.small import conv_stack

OPTIONS = {
    "session.intra_op.allow_spinning": "0",
    "mlas.enable_gemm_fastmath_arm64_bfloat16": True,
    "enable_cpu_mem_arena": False,
    "inter_op_num_threads": 2,
}


def test_options_go_where_the_runtime_wants_them() -> None:
    made = Engine(3, options=OPTIONS)._of_session(None)
    assert made.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert made.get_session_config_entry("mlas.enable_gemm_fastmath_arm64_bfloat16") == "1"
    assert (made.enable_cpu_mem_arena, made.inter_op_num_threads, made.intra_op_num_threads) == (False, 2, 3)
    check_engine(Engine(options=OPTIONS))


@pytest.mark.parametrize("value", ["True", "true", "1", True, 1])
def test_truth_reaches_a_session_however_it_is_typed(value: object) -> None:
    made = Engine(1, options={"session.set_denormal_as_zero": value, "enable_mem_pattern": value})._of_session(None)
    assert made.get_session_config_entry("session.set_denormal_as_zero") == "1"
    assert made.enable_mem_pattern is True


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"threads": 0}, "0"),
        ({"threads": "2"}, "'2'"),
        ({"threads": 1.5}, r"1\.5"),
        ({"provider": None}, "provider"),
        ({"options": "a=b"}, "options.*str"),
        ({"options": {1: 2}}, "options.*1"),
    ],
)
def test_a_runtime_of_wrong_kinds_is_refused(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(LatencyError, match=named):
        cs.Runtime(**wrong)


def test_providers_get_their_options_and_the_number_of_threads() -> None:
    options = {"device_type": "CPU", "session.x": 1, "enable_mem_pattern": 0}
    found = Engine(2, "OpenVINOExecutionProvider", options).providers()
    assert found == [("OpenVINOExecutionProvider", {"num_of_threads": "2", "device_type": "CPU"}), CPU]
    found = Engine(2, "XnnpackExecutionProvider", {"intra_op_num_threads": 1}).providers()
    assert found == [("XnnpackExecutionProvider", {"intra_op_num_threads": "1"}), CPU]


@pytest.mark.parametrize(
    ("engine", "named"),
    [
        (Engine(1, "NoProvider"), r"NoProvider.*CPUExecutionProvider"),
        (Engine(1, "OpenVino"), r"OpenVino.* openvino\?"),
        (Engine(1, "cpu"), r"cpu.* CPUExecutionProvider\?"),
        (Engine(1, "CUDAExecutionprovider"), r"CUDAExecutionprovider.* CUDAExecutionProvider\?"),
        (Engine(1, CPU, {"enable_cpu_mem_arna": 0}), r"enable_cpu_mem_arna.* enable_cpu_mem_arena\?"),
        (Engine(1, CPU, {"use_arena": 0}), "use_arena"),
        (Engine(1, CPU, {"enable_mem_reuse": "perhaps"}), "perhaps"),
        (Engine(0), "threads=0"),
        (Engine(1, level="fastest"), "fastest"),
    ],
)
def test_what_is_not_here_is_refused_with_what_is(engine: Engine, named: str) -> None:
    with pytest.raises(LatencyError, match=named) as error:
        check_engine(engine)
    assert "\n" not in str(error.value)


OTHERS: dict[str, dict[str, object]] = {
    "XnnpackExecutionProvider": {"intra_op_num_threads": 2},
    "CoreMLExecutionProvider": {"ModelFormat": "MLProgram", "RequireStaticInputShapes": True},
    "CUDAExecutionProvider": {"cudnn_conv_algo_search": "EXHAUSTIVE", "use_tf32": False},
    "TensorrtExecutionProvider": {"trt_fp16_enable": True},
}
GIVEN = {"True": "1"}
"""What CoreML reads in place of the words that the others read."""


@pytest.mark.parametrize("provider", OTHERS)
def test_a_provider_that_is_not_here_is_refused_in_a_line(provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["AzureExecutionProvider", CPU])
    with pytest.raises(LatencyError, match=provider) as error:
        cs.Runtime(provider=provider, options=OTHERS[provider])
    assert "\n" not in str(error.value)
    assert CPU in str(error.value)


@pytest.mark.parametrize("provider", OTHERS)
def test_a_provider_that_is_here_gets_its_options(
    provider: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    opened: list[tuple[Any, Any]] = []

    class Session:
        def __init__(self, _model: object, options: Any, *, providers: list[Any], enable_fallback: int) -> None:
            opened.append((options, providers))
            assert not enable_fallback

        def get_providers(self) -> list[str]:
            return [opened[-1][1][0][0]]

    monkeypatch.setattr(ort, "get_available_providers", lambda: [provider, CPU])
    monkeypatch.setattr(ort, "InferenceSession", Session)
    options = {**OTHERS[provider], "session.intra_op.allow_spinning": False, "enable_mem_pattern": False}
    engine = cs.Runtime(provider=provider, options=options).engine
    engine.open(tmp_path / "a.onnx")
    wanted = {name: str(value) for name, value in OTHERS[provider].items()}
    if provider.startswith("CoreML"):
        wanted = {name: GIVEN.get(value, value) for name, value in wanted.items()}
    for how, providers in opened:
        assert providers == [(provider, wanted), CPU]
        assert how.get_session_config_entry("session.intra_op.allow_spinning") == "0"
        assert not how.enable_mem_pattern
    assert len(opened) == 2

    monkeypatch.setattr(Session, "get_providers", lambda _: [CPU])  # the provider is built in, and its device is not
    with pytest.raises(LatencyError, match=provider):
        check_engine(engine)


DOCUMENTED = (
    *("session.intra_op.allow_spinning", "session.force_spinning_stop", "session.set_denormal_as_zero"),
    *("session.load_model_format", "session.use_ort_model_bytes_directly", "session.disable_prepacking"),
    *("session.qdqisint8allowed", "session.x64quantprecision", "session.dynamic_block_base"),
)
"""Entries that onnxruntime has read since 1.13; some of them lie in pieces in its library."""


def test_an_entry_that_onnxruntime_reads_is_taken() -> None:
    assert [why for why in map(why_unknown, DOCUMENTED) if why] == []


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("session.intra_op.allow_spining", "session.intra_op.allow_spinning"),
        ("session.set_denormals_as_zero", "session.set_denormal_as_zero"),
        ("session.xyzzy", ""),
    ],
)
def test_an_entry_that_onnxruntime_would_overlook_is_refused(name: str, near: str) -> None:
    with pytest.raises(LatencyError, match=rf"{name}.*{near}") as error:
        cs.Runtime(options={name: "0"})
    assert "\n" not in str(error.value)


def test_openvino_that_is_not_installed_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(LatencyError, match=r"openvino.*pip install openvino"):
        check_engine(Engine(1, OPENVINO))


def test_a_sparing_session_computes_the_same_and_gives_its_memory_back(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [
            helper.make_node("Sqrt", ["x"], ["w"]),  # the runtime keeps what it took first
            helper.make_node("Tile", ["w", "times"], ["y"]),
            helper.make_node("ReduceMax", ["y"], ["z"]),
        ],
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1024, 1024])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array([8, 8]), "times")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), tmp_path / "a.onnx")
    feed = {"x": np.random.default_rng(0).random((1024, 1024), np.float32)}
    engine = Engine()
    plain, sparing = (engine.open(tmp_path / "a.onnx") for _ in range(2))
    sparing = engine.sparing(sparing)
    before = memory_mb("VmRSS")
    (wanted,) = plain.run(None, feed)
    held = memory_mb("VmRSS")
    for _ in range(2):
        (found,) = sparing.run(None, feed)
        assert found == wanted
    assert held - before > 200  # of 256, which the runtime keeps for the next run
    assert memory_mb("VmRSS") - held < 50
    without = Engine(options={"enable_cpu_mem_arena": False})
    assert without.sparing(without.open(tmp_path / "a.onnx")).run(None, feed) == [wanted]


@pytest.mark.parametrize("provider", [OPENVINO, "OpenVINOExecutionProvider", "XnnpackExecutionProvider"])
def test_other_runtimes_compute_the_same(provider: str, tmp_path: Path) -> None:
    if provider == OPENVINO:
        pytest.importorskip("openvino")
    elif provider not in ort.get_available_providers():
        pytest.skip(f"this onnxruntime lacks {provider}")
    engine, file = Engine(1, provider), conv_stack(tmp_path / "a.onnx", 3)
    check_engine(engine)
    session = Engine().open(file)
    feed = {session.get_inputs()[0].name: np.random.default_rng(0).random(session.get_inputs()[0].shape, np.float32)}
    for found, wanted in zip(engine.open(file).run(None, feed), session.run(None, feed), strict=True):
        assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()
    with pytest.raises(LatencyError, match="nonsense"):
        check_engine(Engine(1, provider, {"nonsense": "1"}))
    if provider == OPENVINO:  # what it says itself, and not where in its source
        with pytest.raises(LatencyError, match=r"NONSENSE.*NONSENSE"):
            check_engine(Engine(1, provider, {"NONSENSE": "1"}))
    with pytest.raises(LatencyError, match="GPU"):
        check_engine(Engine(1, provider, {"device_type": "GPU"}))
