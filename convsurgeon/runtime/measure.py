"""Build candidate networks and time them, here and now."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from convsurgeon.base.errors import LatencyError, WriteError, reason
from convsurgeon.base.files import scratch
from convsurgeon.base.precision import Precision
from convsurgeon.base.progress import bar
from convsurgeon.forms.catalogue import Kinds, kinds_of
from convsurgeon.graph.capture import Capture
from convsurgeon.onnxnet import standalone as measuring
from convsurgeon.onnxnet.session import CPU, check_provider, check_threads
from convsurgeon.onnxnet.standalone import DENSE
from convsurgeon.planning.plan import Plan
from convsurgeon.runtime.attribution import attribute
from convsurgeon.runtime.candidates import (
    Candidate,
    check_timeable,
    find_cheapest,
    find_missing,
    find_slow,
    leave_out,
)
from convsurgeon.runtime.device_folder import write_networks
from convsurgeon.runtime.latencies import NetworkTime
from convsurgeon.runtime.measurements import Measurements, check_types
from convsurgeon.runtime.network_graph import export_skeleton

MARK = "convsurgeon_device"


def time_plans(
    seen: Capture,
    plans: Sequence[Plan],
    *,
    threads: int = 1,
    passes: int = 3,
    precision: Precision = "fp32",
    provider: str = CPU,
    progress: bool = True,
) -> tuple[float, tuple[NetworkTime, ...]]:
    """Return the milliseconds of the dense network, and what the network of every plan takes.

    Args:
        seen: the dense network, captured.
        plans: what to make of it; the weights do not matter and are not fitted.
        threads: of onnxruntime.
        passes: sets of fresh sessions.
        precision: of all networks, the dense one among them.
        provider: onnxruntime's execution provider.
        progress: whether a bar appears when it takes longer than two seconds.

    Raises:
        ExportError: the model has no ONNX form.
        LatencyError: a plan holds a form, or changes a conv, that cannot be timed.
    """
    made = [
        Candidate(f"plan {number}", {name: change.form for name, change in plan.changes.items()}, precision)
        for number, plan in enumerate(plans)
    ]
    for one in made:
        check_timeable(one.chosen)
    kinds = kinds_of(form for one in made for form in one.chosen.values())
    with scratch() as folder:
        raw = measure_candidates(
            seen, [one for one in made if one.chosen], folder / measuring.RESULT, kinds=kinds, threads=threads,
            passes=passes, precision=precision, provider=provider, prune=False, progress=progress)  # fmt: skip
    for name in {name for one in made for name in one.chosen} & set(raw.barred):
        raise LatencyError(f"{name}: cannot be timed in another form: {raw.barred[name]}; leave it out of the plan")
    return raw.total_ms, tuple(_network_time(raw, one, kinds) for one in made)


def _network_time(raw: Measurements, one: Candidate, kinds: Kinds) -> NetworkTime:
    """Return one network's figures, with nothing but the dense one beside it: others may have the same forms."""
    if not one.chosen:
        return NetworkTime(raw.total_ms, {})
    alone = raw.only(DENSE, one.key)
    shares = [sample.total_ms / sample.dense_ms for sample in alone.samples if sample.network == one.key]
    share = median(shares)
    sites = {row.site: row.ms for row in attribute(alone, kinds) if row.form is not None}
    return NetworkTime(share * raw.total_ms, sites, (max(shares) - min(shares)) / 2 / share)


def measure_candidates(
    seen: Capture,
    candidates: Sequence[Candidate],
    target: Path,
    *,
    kinds: Kinds,
    threads: int,
    passes: int,
    precision: Precision,
    provider: str,
    prune: bool,
    progress: bool,
) -> Measurements:
    """Time candidates beside the dense network; the results go into a file bit by bit.

    Args:
        seen: the dense network, captured.
        candidates: what to time beside it.
        target: the file, where earlier results may be.
        kinds: of forms, beside those of the package; what earlier calls timed of others stays in the file.
        threads: of onnxruntime.
        passes: sets of fresh sessions.
        precision: of the candidates.
        provider: onnxruntime's execution provider.
        prune: leave out what can hardly be faster than dense, and say so in the file.
        progress: whether a bar appears when it takes longer than two seconds.

    Returns:
        The results of this precision.

    Raises:
        LatencyError: a setting is not valid, or a network cannot be run.
    """
    if passes < 1:
        raise LatencyError(f"passes={passes}: pass at least 1")
    check_threads(threads)
    check_provider(provider)

    def timed(chosen: Sequence[Candidate]) -> dict[str, Any]:
        total = len(chosen) * passes
        with scratch() as folder, bar(total=total, desc="timing", unit="network", show=progress, delay=2.0) as shown:

            def tell(label: str) -> None:
                shown.set_postfix_str(label, refresh=False)
                shown.update()

            try:
                write_networks(folder, seen, export_skeleton(seen, progress=progress), chosen, [precision])
                return measuring.measure(
                    folder, target, threads, passes, tell, measuring.SECONDS, logs=folder, provider=provider
                )
            except measuring.MeasureError as error:
                raise LatencyError(str(error)) from error
            except OSError as error:
                raise WriteError(
                    f"{target}: measurements cannot be kept ({reason(error)}); make room, or pass another cache"
                ) from error

    if not prune:
        return parse_measurements(timed(candidates)).select(precision, kinds)
    sites = {site.name: site for site in seen.sites}
    values = timed(find_cheapest(candidates, sites))
    known = parse_measurements(values).select(precision, kinds)
    slow = find_slow(candidates, attribute(known, kinds), sites)
    if left := find_missing(leave_out(candidates, slow), known, passes, kinds):
        values = timed(left)
    values["pruned"] = [*values.get("pruned", []), *slow]
    measuring.write(target, values)
    return parse_measurements(values).select(precision, kinds)


def parse_measurements(values: object) -> Measurements:
    """Return what the measuring script wrote, checked.

    Raises:
        LatencyError: it is damaged, or of another version.
    """
    return check_types(values, Measurements, MARK, measuring.FORMAT)


def find_cache_file(
    folder: str | Path | None, network: str, *, threads: int, precision: Precision = "fp32", provider: str = CPU
) -> Path:
    """Return the file of one network, machine, version of onnxruntime and settings; make its folder.

    Raises:
        WriteError: the folder cannot be made.
    """
    place = _cache_folder() if folder is None else Path(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # a NUL in it
        raise WriteError(f"{place}: cannot be made ({reason(error)}); pass another cache folder") from error
    here = {name: value for name, value in measuring.machine().items() if name != "load"}
    key = json.dumps([measuring.FORMAT, network, here, threads, precision, provider], sort_keys=True)
    return place / f"latency-{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"


def _cache_folder() -> Path:
    """Return the user's folder: `CONVSURGEON_CACHE`, or what the system has for this purpose."""
    if own := os.environ.get("CONVSURGEON_CACHE"):
        return Path(own)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "convsurgeon"
