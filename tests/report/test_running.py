"""The lines of Python that a bundle shows open the file as it was timed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from convsurgeon.report.bundle import Recommended
from convsurgeon.report.running import running_code
from tests.onnx.small import conv_stack

OPTIONS = {"session.intra_op.allow_spinning": False, "session.set_denormal_as_zero": "True", "enable_mem_pattern": 0}


def _run(folder: Path, **how: Any) -> dict[str, Any]:
    file = conv_stack(folder / "a.onnx", 3)
    settings = {"over_dense_int8": None, "lost": 0.0, "allowed": 0.0, "spinning": True, "level": "extended", **how}
    best = Recommended(name=str(file), speedup=2.0, interval=(1.9, 2.1), threads=2, **settings)
    names: dict[str, Any] = {}
    exec(compile(running_code(best), "README.md", "exec"), names)
    return names


def test_code_opens_a_file_with_the_options_that_it_was_timed_with(tmp_path: Path) -> None:
    made = _run(tmp_path, provider="CPUExecutionProvider", options=OPTIONS)["session"].get_session_options()
    assert made.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert made.get_session_config_entry("session.set_denormal_as_zero") == "1"
    assert (made.enable_mem_pattern, made.intra_op_num_threads) == (False, 2)
    assert made.graph_optimization_level.name == "ORT_ENABLE_EXTENDED"


def test_code_opens_a_file_in_openvino(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    made = _run(tmp_path, provider="openvino", options={"ENABLE_HYPER_THREADING": "NO"})["model"]
    assert made.get_property("INFERENCE_NUM_THREADS") == 2
    assert made.get_property("ENABLE_HYPER_THREADING") is False
