"""OpenVINO without onnxruntime, in the shape of onnxruntime's sessions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .clock import Times
from .profiles import Kernel


def openvino_options(threads: int, options: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """Return the device, and the options that a network is compiled with; float32 unless they say otherwise."""
    given = {"device_type": "CPU", "INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": "1", **options}
    device = given.pop("device_type")
    return device, {"INFERENCE_NUM_THREADS": str(threads), **given} if device == "CPU" else given


class OpenVino:
    """A network that OpenVINO has compiled."""

    def __init__(self, model: Path | bytes, threads: int, options: Mapping[str, str], *, profiled: bool) -> None:
        import openvino

        self._device, self._options = openvino_options(threads, options)
        self._core = openvino.Core()
        self._network = self._core.read_model(str(model) if isinstance(model, Path) else model)
        self._compile(profiled)

    def _compile(self, profiled: bool) -> None:
        options = {**self._options, "PERF_COUNT": "YES" if profiled else "NO"}
        self._request = self._core.compile_model(self._network, self._device, options).create_infer_request()

    def run(self, _names: None, feeds: dict[str, Any]) -> list[Any]:
        """Return all outputs, as a session of onnxruntime does."""
        return list(self._request.infer(feeds, share_inputs=True).values())

    def end_profiling(self, stamps: Times) -> list[Kernel]:
        """Return every node that ran, and compile the network again without the profile.

        OpenVINO counts whole microseconds and gives the mean of all runs, slow ones included, so the nodes share what
        the fastest quarter of runs took.
        """
        ran = [one for one in self._request.get_profiling_info() if one.status.name == "EXECUTED"]
        taken = np.array([1e3 * one.real_time.total_seconds() for one in ran]) + 5e-4
        runs = np.sort(np.diff(stamps[..., 1], axis=1).reshape(-1))
        times = taken * (runs[: max(1, len(runs) // 4)].mean() / taken.sum())
        self._compile(profiled=False)
        kinds = {"Reorder": "ReorderInput", "Convolution": "Conv"}
        return [
            (one.node_name, {"op_name": kinds.get(one.node_type, one.node_type), "node_index": place}, ms, ms)
            for place, (one, ms) in enumerate(zip(ran, times.tolist()))  # noqa: B905  # Python 3.9
        ]
