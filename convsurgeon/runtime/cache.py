"""Earlier measurements of a network on this machine: one file for each network, version of onnxruntime and setting."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from convsurgeon.base.errors import LatencyError, WriteError, reason
from convsurgeon.base.files import cache_folder, scratch
from convsurgeon.base.precision import Precision
from convsurgeon.forms.catalogue import Kinds
from convsurgeon.graph.capture import Capture
from convsurgeon.onnxnet.measuring.clock import busy_share
from convsurgeon.onnxnet.measuring.engine import Engine
from convsurgeon.onnxnet.measuring.files import FORMAT, read_json, write_json
from convsurgeon.onnxnet.measuring.place import machine
from convsurgeon.runtime.attribution import attribute
from convsurgeon.runtime.latencies import BUSY
from convsurgeon.runtime.measurements import MARK, Measurements, read_measurements
from convsurgeon.runtime.network_graph import fingerprint

_CLOCK = "processor"
"""What one thread is timed by; times by another clock do not stand beside these."""


@contextmanager
def cache_file(folder: str | Path | None, seen: Capture, engine: Engine, precision: Precision) -> Iterator[Path]:
    """Give the file of one network, machine, version of onnxruntime and setting.

    Where it cannot be written, give a copy that is gone afterwards.
    """
    place = cache_folder(folder)
    here = {name: value for name, value in machine(engine.provider).items() if name != "load"}
    key = json.dumps([FORMAT, _CLOCK, fingerprint(seen), here, precision, vars(engine)], sort_keys=True)
    target = place / f"latency-{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"
    try:
        place.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=place).close()
    except (OSError, ValueError) as error:  # a NUL in it
        if folder is not None and not place.exists():
            raise WriteError(f"{place}: cannot be made ({reason(error)}); pass another cache folder") from error
        with scratch() as instead:
            copy = instead / target.name
            if target.exists():
                shutil.copyfile(target, copy)
            before = copy.read_bytes() if copy.exists() else None
            yield copy
            if copy.exists() and copy.read_bytes() != before:
                text = f"{place}: cannot be written ({reason(error)}), so milliseconds are not kept for the next call"
                warnings.warn(text, stacklevel=2)
    else:
        yield target


def read_cache(file: Path, precision: Precision, forms: Kinds, threads: int) -> Measurements | None:
    """Return what was measured before of forms that are known, if anything was.

    A file that is damaged goes, with a warning. What was measured on a busy machine goes once that is quiet.
    """
    if not file.exists():
        return None
    try:
        if read_measurements(file).busy > BUSY and busy_share(threads) < BUSY / 2:
            _forget_busy(file)
        found = read_measurements(file).known(forms).select(precision)
        attribute(found, forms)
    except LatencyError as error:
        if file.exists():
            warnings.warn(f"{file}: {error}; it is measured again", stacklevel=2)
            file.unlink()
        return None
    return found


def _forget_busy(file: Path) -> None:
    """Leave the samples of a quiet machine in a file of measurements, or delete it where there are none."""
    raw = read_json(file, MARK)
    quiet = [sample for sample in raw["samples"] if sample.get("busy", 0.0) <= BUSY]
    if quiet:
        write_json(file, {**raw, "samples": quiet})
    else:
        file.unlink()
