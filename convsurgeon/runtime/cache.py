"""Where measurements are kept between calls, and under which name.

Times depend on the network's layers, shapes and order but not on its weights, so that is what the fingerprint is made
of: it costs milliseconds, where exporting the network to look at its graph takes seconds.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from pathlib import Path

from convsurgeon.base.errors import WriteError, reason
from convsurgeon.base.precision import Precision
from convsurgeon.graph.capture import Capture
from convsurgeon.onnx import standalone as measuring
from convsurgeon.onnxnet.session import check_threads

_ADDRESS = re.compile(r"0x[0-9a-fA-F]+")
_ROUNDED = "ends of restorers in float"
"""What distinguishes the int8 graphs that are timed now from those of older versions."""


def cache_folder() -> Path:
    """The user's: `CONVSURGEON_CACHE`, or what the system has for this purpose."""
    if own := os.environ.get("CONVSURGEON_CACHE"):
        return Path(own)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "convsurgeon"


def cache_file(folder: str | Path | None, network: str, threads: int, precision: Precision = "fp32") -> Path:
    """The file of one network, machine, runtime version, thread count and precision; its folder is made.

    Raises:
        LatencyError: no threads, or too many.
        WriteError: the folder cannot be made.
    """
    check_threads(threads)
    place = cache_folder() if folder is None else Path(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # a NUL in it
        raise WriteError(f"{place}: cannot be made ({reason(error)}); pass another cache folder") from error
    here = {name: value for name, value in measuring.machine().items() if name != "load"}
    bits = [] if precision == "fp32" else [precision, _ROUNDED]  # files of older versions hold fp32
    key = json.dumps([measuring.FORMAT, network, here, threads, *bits], sort_keys=True)
    return place / f"latency-{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"


def fingerprint(seen: Capture) -> str:
    """What a network's times depend on: its modules, its graph, its shapes, and the code of its forwards."""
    found = hashlib.sha256()
    for part in (repr(seen.model), str(seen.graph.graph), str(seen.opaque)):
        found.update(_ADDRESS.sub("", part).encode())
    for name, tensor in (*seen.model.named_parameters(), *seen.model.named_buffers()):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
    for tensor in seen.example.tensors():
        found.update(f"{tuple(tensor.shape)} {tensor.dtype}\n".encode())
    for kind in dict.fromkeys(type(module) for module in seen.model.modules()):
        code = getattr(kind.forward, "__code__", None)
        if code is not None and not kind.__module__.startswith("torch."):
            found.update(code.co_code + _ADDRESS.sub("", str(code.co_consts)).encode() + str(code.co_names).encode())
    for site in seen.sites:
        found.update(f"{site.names} {site.geometry} {site.calls}\n".encode())
    return found.hexdigest()
