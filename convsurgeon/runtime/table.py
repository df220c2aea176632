"""Milliseconds of every conv in every form, measured inside the whole network.

One network is built per form, with the form wherever it fits; the runtime's profile of it says what each site takes
beside its neighbours. In int8 every network is quantised by the exporter's own steps, and shares are of the dense int8
network. No image is needed: values take no time.

Law: the sites' milliseconds and `rest_ms` add up to `total_ms`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from msgspec import Struct

from convsurgeon.base.errors import FormError, LatencyError
from convsurgeon.base.files import new_file
from convsurgeon.base.precision import Precision
from convsurgeon.base.tables import Table
from convsurgeon.forms.catalogue import Kinds, form_from_dict, kinds_of
from convsurgeon.forms.form import Form
from convsurgeon.graph.capture import Capture
from convsurgeon.onnxnet import standalone as measuring
from convsurgeon.onnxnet.session import CPU
from convsurgeon.planning.plan import Plan
from convsurgeon.planning.select import Predicate
from convsurgeon.runtime.attribution import ROUNDING, Row, attribute
from convsurgeon.runtime.candidates import candidates_of, find_missing, leave_out
from convsurgeon.runtime.latencies import NetworkTime, check_precision
from convsurgeon.runtime.measure import MARK, find_cache_file, measure_candidates, parse_measurements, time_plans
from convsurgeon.runtime.measurements import (
    Count,
    Duration,
    Measurements,
    Milliseconds,
    check_types,
    read_json,
)
from convsurgeon.runtime.network_graph import fingerprint

_MARK, _VERSION = "convsurgeon_latencies", 2


@dataclass(frozen=True)
class LatencyTable:
    """What every conv of one network takes on one machine, as it is and in other forms.

    Args:
        rows: one per site as it is, then one per site and form.
        total_ms: of the network as it is.
        model: name of the network's class.
        example: its input, in words.
        threads: of onnxruntime.
        passes: sets of sessions that the figures are medians of.
        machine: where it was measured.
        precision: of all networks, the one as it is among them.
        provider: onnxruntime's execution provider.

    Raises:
        LatencyError: a site is there in a form but not as it is, or the sites take more than the whole network.
    """

    rows: tuple[Row, ...]
    total_ms: float
    model: str
    example: str
    threads: int
    passes: int
    machine: Mapping[str, str | int | float]
    precision: Precision = "fp32"
    provider: str = CPU

    def __post_init__(self) -> None:
        dense = {row.site: row for row in self.rows if row.form is None}
        if unknown := sorted({row.site for row in self.rows} - set(dense)):
            raise LatencyError(f"{unknown[0]}: is there in a form, but not as it is; measure again")
        sites_ms = sum(row.ms for row in dense.values())
        noise_ms = sum(2 * row.spread * row.ms for row in dense.values())  # medians are of different passes
        if sites_ms > self.total_ms * (1 + ROUNDING) + noise_ms:
            raise LatencyError(f"the convs take {sites_ms:.4g} ms of {self.total_ms:.4g} in all; measure again")

    @staticmethod
    def measure(
        seen: Capture,
        forms: Sequence[Form],
        policy: Predicate | None = None,
        *,
        threads: int = 1,
        passes: int = 3,
        precision: Precision = "fp32",
        provider: str = CPU,
        cache: str | Path | None = None,
        prune: bool = True,
        progress: bool = True,
    ) -> LatencyTable:
        """Measure on this machine, or read what was measured before.

        Args:
            seen: the dense network, captured.
            forms: candidates for every site.
            policy: which sites may be changed; by default all but the stem.
            threads: of onnxruntime.
            passes: sets of fresh sessions; times differ by up to 10 % from one to the next.
            precision: in which the networks run: fp32, or int8 as `export` writes it.
            provider: onnxruntime's execution provider.
            cache: folder of earlier measurements, one file per network, machine, version of onnxruntime and settings;
                the user's cache folder if not given. A stopped measurement goes on from there.
            prune: leave out what can hardly be faster than dense, judged by the cheapest form of its kind.
            progress: whether a bar appears when it takes longer than two seconds.

        Raises:
            ExportError: the model has no ONNX form.
            LatencyError: the network cannot be timed, or the cached file is damaged.
        """
        check_precision(precision)
        kinds = kinds_of(forms)
        target = find_cache_file(cache, fingerprint(seen), threads=threads, precision=precision, provider=provider)
        raw = _read_cache(target, precision, kinds)
        wanted = candidates_of(seen, forms, policy, precision)
        if raw is not None and prune:
            wanted = leave_out(wanted, raw.pruned)
        missing = find_missing(wanted, raw, passes, kinds)
        if missing or raw is None:
            raw = measure_candidates(
                seen, missing, target, kinds=kinds, threads=threads, passes=passes, precision=precision,
                provider=provider, prune=prune, progress=progress)  # fmt: skip
        return dataclasses.replace(_table(raw, precision, kinds), provider=provider)

    @staticmethod
    def load(path: str | Path, forms: Kinds = (), *, precision: Precision | None = None) -> LatencyTable:
        """Read what `save` wrote, or the `device.json` of a device.

        Args:
            path: of the file.
            forms: kinds of form that may be in it beside those of the package.
            precision: that is wanted. A `device.json` holds both, of which fp32 is read where nothing is said; what
                `save` wrote holds one.

        Raises:
            LatencyError: it is neither, is damaged, or does not hold this precision.
        """
        place = Path(path)
        values = read_json(place)
        try:
            if isinstance(values, dict) and MARK in values:
                wanted = precision or "fp32"
                return _table(parse_measurements(values).select(wanted, forms), wanted, forms)
            found = _parse_table(values, forms)
            if precision not in (None, found.precision):
                raise LatencyError(f"is a table of {found.precision}, {precision} is wanted; measure one with that")
            return found
        except LatencyError as error:
            raise LatencyError(f"{place}: {error}") from error

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the table as JSON.

        Raises:
            WriteError: the file exists, or its folder is missing.
        """
        with new_file(path, overwrite) as draft:
            draft.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    def to_dict(self) -> dict[str, Any]:
        """Return the table as JSON."""
        rows = [{**vars(row), "form": None if row.form is None else row.form.to_dict()} for row in self.rows]
        head = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return {_MARK: _VERSION, **head, "rows": [{**row, "flags": list(row["flags"])} for row in rows]}

    @cached_property
    def _index(self) -> dict[tuple[str, str], Row]:
        return {(row.site, _label(row.form)): row for row in self.rows}

    def has(self, site: str, form: Form | None) -> bool:
        """Return whether this was measured; a form is known by its label, its rank settled."""
        return (site, _label(form)) in self._index

    def ms(self, site: str, form: Form | None) -> float:
        """Return the milliseconds of a site in a form, or as it is (all its calls).

        Raises:
            LatencyError: that was not measured.
        """
        if not self.has(site, form):
            words = _label(form) or "the site"
            raise LatencyError(f"{site}: {words} is not in the table of latencies; measure it with that form")
        return self._index[site, _label(form)].ms

    @property
    def rest_ms(self) -> float:
        """Return the milliseconds of everything that is not a site."""
        return self.total_ms - sum(row.ms for row in self.rows if row.form is None)

    def predict(self, plan: Plan) -> float:
        """Return the milliseconds of the whole network once a plan is carried out.

        Raises:
            LatencyError: a site or form of the plan was not measured.
        """
        changes = plan.changes.values()
        return self.total_ms - sum(self.ms(change.name, None) - self.ms(change.name, change.form) for change in changes)

    def time(
        self, seen: Capture, plans: Sequence[Plan], *, all_cores: bool = False, progress: bool
    ) -> tuple[NetworkTime, ...] | None:
        """Time the whole network of every plan, to confirm what the table predicts.

        Args:
            seen: the dense network, captured.
            plans: what to make of it.
            all_cores: with as many threads as this machine has cores, in place of the table's.
            progress: whether a bar appears when it takes longer than two seconds.

        Returns:
            Times scaled to a machine on which the dense network takes `total_ms`, because other work may have slowed
            one of the two measurements. None if the table was measured on another machine or with another input, or
            has all cores already.

        Raises:
            ExportError: the model has no ONNX form.
            LatencyError: a plan changes a conv that cannot be timed.
        """
        here = measuring.machine()
        threads = int(here["cores"]) if all_cores else self.threads
        elsewhere = not measuring.same_machine(dict(self.machine), here) or str(seen.example) != self.example
        if elsewhere or (all_cores and threads == self.threads):
            return None
        dense_ms, found = time_plans(
            seen, plans, threads=threads, passes=max(1, self.passes), precision=self.precision, provider=self.provider,
            progress=progress)  # fmt: skip
        scale = self.total_ms / dense_ms
        return tuple(
            NetworkTime(scale * one.total_ms, {site: scale * ms for site, ms in one.sites.items()}, one.spread)
            for one in found
        )

    @property
    def table(self) -> Table:
        """Return one line per site and form."""
        columns = (
            *(("conv", "text"), ("form", "text"), ("ms", "ms"), ("spread", "share"), ("speed_up", "times")),
            ("in the runtime's graph", "text"),
        )
        order = {row.site: place for place, row in enumerate(row for row in self.rows if row.form is None)}
        rows = []
        for row in sorted(self.rows, key=lambda row: order[row.site]):
            if dense := self.ms(row.site, None):
                speedup = None if row.form is None or not row.ms else dense / row.ms
                label = _label(row.form) or "dense"
                rows.append((row.site, label, row.ms, row.spread, speedup, ", ".join(row.flags) or None))
        cpu, version = self.machine.get("cpu", "?"), self.machine.get("onnxruntime", "?")
        title = (
            f"Latency of {self.model} on {self.example}: {self.total_ms:.3f} ms, {self.rest_ms:.3f} of it in no conv "
            f"listed here\n{self.precision}, {self.passes} passes, threads {self.threads}, {cpu}, onnxruntime {version}"
        )
        return Table(title, columns, tuple(rows))

    def __str__(self) -> str:
        return self.table.text()


def _label(form: Form | None) -> str:
    return "" if form is None else form.label


def _read_cache(target: Path, precision: Precision, forms: Kinds) -> Measurements | None:
    """Return what was measured before of forms that are known."""
    if not target.exists():
        return None
    values = read_json(target)
    try:
        found = parse_measurements(values).select(precision, forms)
        attribute(found, forms)
    except LatencyError as error:
        raise LatencyError(f"{target}: {error}; delete it to measure again") from error
    return found


def _table(raw: Measurements, precision: Precision, forms: Kinds) -> LatencyTable:
    return LatencyTable(
        attribute(raw, forms), raw.total_ms, raw.model, raw.example, raw.threads, raw.passes, raw.machine, precision
    )


class _RowFile(Struct):
    site: str
    form: dict[str, Any] | None
    ms: Milliseconds
    spread: Milliseconds
    flags: tuple[str, ...]


class _TableFile(Struct):
    rows: tuple[_RowFile, ...]
    total_ms: Duration
    model: str
    example: str
    threads: Count
    passes: Count
    machine: dict[str, str | int | float]
    precision: Precision
    provider: str


def _parse_table(values: object, forms: Kinds) -> LatencyTable:
    found = check_types(values, _TableFile, _MARK, _VERSION)
    rows = []
    for row in found.rows:
        try:
            form = None if row.form is None else form_from_dict(row.form, forms)
        except (FormError, TypeError, ValueError) as error:
            raise LatencyError(f"{row.site}: its form is damaged ({error}); measure again") from error
        rows.append(Row(row.site, form, row.ms, row.spread, row.flags))
    head = {name: getattr(found, name) for name in _TableFile.__struct_fields__}
    return LatencyTable(**{**head, "rows": tuple(rows)})
