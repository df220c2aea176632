"""Build candidate networks and time them, here and now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from convsurgeon.base.errors import LatencyError, WriteError, reason
from convsurgeon.base.files import scratch
from convsurgeon.base.precision import Precision
from convsurgeon.base.progress import bar
from convsurgeon.forms.catalogue import Kinds, kinds_of
from convsurgeon.graph.capture import Capture
from convsurgeon.onnxnet.measuring import folder as folders
from convsurgeon.onnxnet.measuring.engine import Engine, MeasureError
from convsurgeon.onnxnet.measuring.files import RESULT, read_manifest
from convsurgeon.onnxnet.session import check_engine
from convsurgeon.planning.plan import Plan
from convsurgeon.runtime.attribution import attribute
from convsurgeon.runtime.candidates import Candidate, check_timeable
from convsurgeon.runtime.device_folder import write_candidates
from convsurgeon.runtime.latencies import NetworkTime
from convsurgeon.runtime.measurements import Measurements, read_measurements
from convsurgeon.runtime.network_graph import export_skeleton
from convsurgeon.timing.interleaved import time_interleaved
from convsurgeon.timing.verdict import MIN_PAIRS, Verdict, judge


@dataclass(frozen=True)
class Settings:
    """How networks are timed: a `Runtime`, and in how many sets of fresh sessions."""

    engine: Engine
    precision: Precision
    passes: int
    progress: bool

    def __post_init__(self) -> None:
        check_engine(self.engine)
        if self.passes < 1:
            raise LatencyError(f"passes={self.passes}: pass at least 1")


def time_plans(seen: Capture, plans: Sequence[Plan], how: Settings) -> tuple[float, tuple[NetworkTime, ...]]:
    """Return the milliseconds of the dense network, and what the network of every plan takes."""
    made = [_candidate(plan, f"plan {number}") for number, plan in enumerate(plans)]
    kinds = kinds_of(form for one in made for form in one.chosen.values())
    with scratch() as folder:
        raw = measure_candidates(seen, [one for one in made if one.chosen], folder / RESULT, how)
    for name in {name for one in made for name in one.chosen} & set(raw.barred):
        raise LatencyError(f"{name}: cannot be timed in another form: {raw.barred[name]}; leave it out of the plan")
    return raw.total_ms, tuple(_network_time(raw, one, kinds) for one in made)


def _candidate(plan: Plan, label: str) -> Candidate:
    """Return the network of a plan, if it can be timed."""
    made = Candidate(label, {name: change.form for name, change in plan.changes.items()})
    check_timeable(made.chosen)
    return made


def _network_time(raw: Measurements, one: Candidate, kinds: Kinds) -> NetworkTime:
    """Return one network's figures, with nothing but the dense one beside it: others may have the same forms."""
    if not one.chosen:
        return NetworkTime(raw.total_ms, {})
    key = one.key(raw.precision)
    alone = raw.beside_dense([key])
    own = [sample for sample in alone.samples if sample.network == key]
    shares = [sample.total_ms / sample.dense_ms for sample in own]
    share = median(shares)
    spread = max(abs(one / share - 1) + sample.scatter for one, sample in zip(shares, own, strict=True))
    rows = attribute(alone, kinds)
    most = {row.site: row.ms * (1 + row.spread) for row in rows if row.form is None}
    changed = [row for row in rows if row.form is not None]
    slower = tuple(row.site for row in changed if row.ms * (1 - row.spread) > most[row.site])
    return NetworkTime(share * raw.total_ms, {row.site: row.ms for row in changed}, spread, slower, alone.busy)


def compare_plan(seen: Capture, plan: Plan, how: Settings, *, as_it_was: bool = False) -> Verdict:
    """Return how the network of a plan compares with the dense one, from interleaved pairs without a profiler.

    Args:
        seen: the dense network.
        plan: what to compare with it.
        how: the setting.
        as_it_was: whether to compare with the dense network as torch writes it or as it is stored.
    """
    made = [Candidate("as it was", {}, as_it_was=True)] * as_it_was + [_candidate(plan, "plan")]
    with scratch() as folder:
        write_candidates(folder, seen, export_skeleton(seen, progress=how.progress), made, [how.precision])
        dense, *others = [folder / str(entry["file"]) for entry in read_manifest(folder)["networks"].values()]
        files = [others[0], others[-1] if plan.changes else dense] if as_it_was else [dense, others[0]]
        base, again, other = time_interleaved(
            files, MIN_PAIRS, engine=how.engine, batch=1, sizes={}, seed=0, progress=False
        )
    return judge(base.samples, again.samples, other.samples)


def measure_candidates(seen: Capture, candidates: Sequence[Candidate], target: Path, how: Settings) -> Measurements:
    """Time candidates beside the dense network; return everything in the target file that is of this precision.

    Results are added to the file bit by bit.
    """
    total = len(candidates) * how.passes
    with (
        scratch() as folder,
        bar(total=total, desc="timing layers", unit="session", show=how.progress, delay=2.0) as shown,
    ):

        def tell(_: str, passes: float) -> None:
            shown.update(passes)

        try:
            skeleton = export_skeleton(seen, progress=how.progress)
            write_candidates(folder, seen, skeleton, candidates, [how.precision], how.engine.provider)
            folders.measure_folder(folder, target, how.engine, how.passes, tell)
            return read_measurements(target).select(how.precision)
        except MeasureError as error:
            raise LatencyError(str(error)) from error
        except OSError as error:
            raise WriteError(
                f"{target}: measurements cannot be kept ({reason(error)}); make room, or pass another cache"
            ) from error
