"""Facts about the machine without which a time means nothing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import onnxruntime as ort

_THROTTLED = 1.15
"""Times as long from which on a network that is timed again counts as slowed down."""


def machine(provider: str = "") -> dict[str, Any]:
    """Return the facts of this machine without which a time means nothing."""
    facts = {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "system": f"{platform.system()} {platform.machine()}",
        "onnxruntime": ort.__version__,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0,
    }
    return {**facts, "openvino": importlib.metadata.version("openvino")} if provider == "openvino" else facts


def same_machine(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Tell whether times of both machines may stand side by side."""
    return all(one.get(name) == other.get(name) for name in ("cpu", "cores", "system", "onnxruntime", "openvino"))


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


def free_bytes() -> float:
    """Return how much memory is free, or a guess."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024.0 * float(line.split()[1])
    except (OSError, ValueError, IndexError):
        pass
    return 4e9


def heat() -> dict[str, float]:
    """Return the highest temperature and the mean frequency of the processor, as far as the system tells them."""
    celsius = [1e-3 * one for one in _numbers("class/thermal", "thermal_zone*/temp") if 0 < one < 150_000]
    mhz = [1e-3 * one for one in _numbers("devices/system/cpu", "cpu[0-9]*/cpufreq/scaling_cur_freq")]
    found = {"celsius": max(celsius)} if celsius else {}
    return {**found, "mhz": sum(mhz) / len(mhz)} if mhz else found


def _numbers(folder: str, pattern: str) -> list[float]:
    found = []
    for path in Path("/sys", folder).glob(pattern):
        try:
            found.append(float(path.read_text()))
        except (OSError, ValueError):  # a sensor that is asleep
            continue
    return found


def slowed_by_heat(samples: list[dict[str, Any]]) -> str:
    """Return words on a dense network that became slower while it was timed again and again; empty if it did not."""
    worst, words = 1.0, ""
    for name in {sample["network"] for sample in samples if sample["total_ms"] == sample["dense_ms"]}:
        own = [sample for sample in samples if sample["network"] == name]
        first, last = own[0], max(own, key=lambda sample: sample["total_ms"])
        ratio = last["total_ms"] / first["total_ms"]
        if ratio > max(worst, _THROTTLED):
            heats = [f"{one['celsius']:.0f} C" for one in (first, last) if "celsius" in one]
            worst, words = ratio, f"; it became {ratio:.2f} times as slow meanwhile ({' to '.join(heats) or 'heat?'})"
    return words
