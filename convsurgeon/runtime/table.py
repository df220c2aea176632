"""Milliseconds of every conv in every form, measured inside the whole network.

Networks are built with a form at every site, and the runtime's profile of one says what each site takes beside its
neighbours. In int8 every network is quantised by the exporter's own steps, and shares are of the dense int8
network. No image is needed: values take no time.

Law: the sites' milliseconds and `rest_ms` add up to `total_ms`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import msgspec
import numpy as np

from convsurgeon.base.errors import LatencyError
from convsurgeon.base.files import new_file
from convsurgeon.base.precision import Precision
from convsurgeon.base.tables import Table
from convsurgeon.forms.catalogue import Kinds, kinds_of
from convsurgeon.forms.form import Form
from convsurgeon.graph.capture import Capture
from convsurgeon.onnxnet.measuring.clock import busy_share
from convsurgeon.onnxnet.measuring.files import FORMAT
from convsurgeon.onnxnet.measuring.folder import SLOW_S
from convsurgeon.onnxnet.measuring.place import machine, same_machine
from convsurgeon.planning.plan import Plan
from convsurgeon.planning.select import Predicate
from convsurgeon.runtime.attribution import Row, attribute
from convsurgeon.runtime.cache import cache_file, read_cache
from convsurgeon.runtime.candidates import (
    candidates_of,
    find_cheapest,
    find_missing,
    full_rank,
    kind_of,
    leave_out_between,
    leave_out_slow,
    networks_with,
)
from convsurgeon.runtime.latencies import BUSY, NetworkTime
from convsurgeon.runtime.measure import Settings, compare_plan, measure_candidates, time_plans
from convsurgeon.runtime.measurements import MARK, Measurements, read_measurements
from convsurgeon.timing.verdict import Verdict


@dataclass(frozen=True)
class LatencyTable:
    """What every conv of one network takes on one machine, as it is and in other forms."""

    rows: tuple[Row, ...]
    """One per site as it is, then one per site and form."""
    measurements: Measurements
    """Of one precision."""

    @staticmethod
    def load(path: str | Path, forms: Kinds = (), *, precision: Precision | None = None) -> LatencyTable:
        """Read what `save` wrote, or the `device.json` of a device: of both precisions, fp32 if none is named.

        Raises:
            LatencyError: it is neither, is damaged, or does not hold this precision.
        """
        found = read_measurements(Path(path))
        try:
            chosen = found.select(precision or found.precision)
            return LatencyTable(attribute(chosen, forms), chosen)
        except LatencyError as error:
            raise LatencyError(f"{path}: {error}") from error

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the table's measurements as JSON.

        Raises:
            WriteError: the file exists, or its folder is missing.
        """
        values = {MARK: FORMAT, **msgspec.to_builtins(self.measurements)}
        with new_file(path, overwrite) as draft:
            draft.write_text(json.dumps(values) + "\n", encoding="utf-8")

    @property
    def total_ms(self) -> float:
        """Return the milliseconds of the network as it is."""
        return self.measurements.total_ms

    @property
    def precision(self) -> Precision:
        """Return the precision of all networks, the dense one among them."""
        return self.measurements.precision

    @property
    def rest_ms(self) -> float:
        """Return the milliseconds of everything that is not a site."""
        return self.total_ms - sum(row.ms for row in self.rows if row.form is None)

    @cached_property
    def _index(self) -> dict[tuple[str, str], float]:
        return {(row.site, _label(row.form)): row.ms for row in self.rows}

    @cached_property
    def _lines(self) -> dict[tuple[str, str], list[tuple[int, float]]]:
        """Return what every site takes in every kind of form, by rank, from where on that is a line."""
        found: dict[tuple[str, str], list[tuple[int, float]]] = {}
        for row in self.rows:
            if row.form is not None and (rank := full_rank(row.form)):
                found.setdefault((row.site, kind_of(row.form)), []).append((rank, row.ms))
        return {key: sorted(points) for key, points in found.items()}

    def has(self, site: str, form: Form | None) -> bool:
        """Return whether this was measured, or lies between two ranks that were.

        A form is known by its label, its rank settled.
        """
        return self._find(site, form) is not None

    def ms(self, site: str, form: Form | None) -> float:
        """Return the milliseconds of a site in a form, or as it is (all its calls).

        Raises:
            LatencyError: that was not measured.
        """
        if (found := self._find(site, form)) is None:
            words = _label(form) or "the site"
            raise LatencyError(f"{site}: {words} is not in the table of latencies; measure it with that form")
        return found

    def _find(self, site: str, form: Form | None) -> float | None:
        measured = self._index.get((site, _label(form)))
        if measured is not None or form is None:
            return measured
        rank, points = full_rank(form), self._lines.get((site, kind_of(form)), [])
        if not points or not points[0][0] <= rank <= points[-1][0]:
            return None
        ranks, times = zip(*points, strict=True)
        return float(np.interp(rank, ranks, times))

    def time(self, seen: Capture, plans: Sequence[Plan], *, progress: bool) -> tuple[NetworkTime, ...] | None:
        """Time the whole network of every plan, to confirm what the table predicts.

        Times are scaled to a machine on which the dense network takes `total_ms`, because other work may have slowed
        one of the two measurements. None if the table was measured on another machine or with another input.

        Raises:
            ExportError: the model has no ONNX form.
            LatencyError: a plan changes a conv that cannot be timed.
        """
        if not self._is_of(seen):
            return None
        raw = self.measurements
        dense_ms, found = time_plans(seen, plans, Settings(raw.engine, raw.precision, raw.passes, progress))
        scale = self.total_ms / dense_ms
        return tuple(
            replace(one, total_ms=scale * one.total_ms, sites={site: scale * ms for site, ms in one.sites.items()})
            for one in found
        )

    def with_all_cores(self, seen: Capture, plan: Plan, *, progress: bool) -> Verdict | None:
        """Compare a plan's network with the original on all cores, in interleaved pairs.

        None if the table is of another machine or input, or of all cores already, or if other work takes the cores.

        Raises:
            ExportError: the model has no ONNX form.
            LatencyError: the plan changes a conv that cannot be timed.
        """
        raw, cores = self.measurements, int(machine()["cores"])
        if not self._is_of(seen) or cores == raw.threads or busy_share(cores) > BUSY:
            return None
        engine = replace(raw.engine, threads=cores)
        return compare_plan(seen, plan, Settings(engine, raw.precision, 1, progress))

    def _is_of(self, seen: Capture) -> bool:
        """Return whether the table was measured on this machine and with this input."""
        raw = self.measurements
        return same_machine(dict(raw.machine), machine(raw.provider)) and str(seen.example) == raw.example

    @property
    def table(self) -> Table:
        """Return one line per site and form."""
        columns = (("layer", "text"), ("form", "text"), ("ms", "ms"), ("spread", "share"), ("speed_up", "times"))
        order = {row.site: place for place, row in enumerate(row for row in self.rows if row.form is None)}
        rows = []
        for row in sorted(self.rows, key=lambda row: order[row.site]):
            if dense := self.ms(row.site, None):
                speedup = None if row.form is None or not row.ms else dense / row.ms
                label = _label(row.form) or "dense"
                rows.append((row.site, label, row.ms, row.spread, speedup))
        raw = self.measurements
        own = raw.provider if raw.provider in raw.machine else "onnxruntime"
        cpu, version = raw.machine.get("cpu", "?"), f"{own} {raw.machine.get(own, '?')}"
        title = (
            f"Latency of {raw.model} on {raw.example}: {self.total_ms:.3f} ms, {self.rest_ms:.3f} of it in no conv "
            f"listed here\n{self.precision}, {raw.passes} passes, {raw.engine}, {cpu}, {version}"
        )
        return Table(title, columns, tuple(rows))

    def __str__(self) -> str:
        return self.table.text()


def _label(form: Form | None) -> str:
    return "" if form is None else form.label


def measure_table(
    seen: Capture,
    forms: Sequence[Form],
    policy: Predicate | None,
    how: Settings,
    *,
    cache: str | Path | None,
    prune: bool,
) -> LatencyTable:
    """Return the table of this machine: what is in the cache, and the rest measured now."""
    kinds = kinds_of(forms)
    sites = {site.name: site for site in seen.sites}
    wanted = candidates_of(seen, forms, policy)
    with cache_file(cache, seen, how.engine, how.precision) as target:
        raw = read_cache(target, how.precision, kinds, how.engine.threads)
        cheapest = find_cheapest(wanted, sites) if prune else wanted
        first = find_missing(cheapest, raw, how.passes, kinds)
        if first or raw is None:
            raw = measure_candidates(seen, first, target, how).known(kinds)
        if prune:  # by the cheapest forms' own sessions: what is left out is the same however much is timed later
            early = raw.beside_dense(networks_with(cheapest, raw, kinds))
            worth = leave_out_slow(wanted, attribute(early, kinds), sites)
            if early.total_ms >= 1e3 * SLOW_S:
                worth = leave_out_between(worth)
            if rest := find_missing(worth, raw, how.passes, kinds):
                raw = measure_candidates(seen, rest, target, how).known(kinds)
    return LatencyTable(attribute(raw, kinds), raw)
