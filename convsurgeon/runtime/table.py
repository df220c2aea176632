"""Milliseconds of every conv in every form, measured inside the whole network.

    table = LatencyTable.measure(model, example, [DepthwiseSeparable(rank=1), Blueprint(rank=1)])
    table.ms("layer1.0.conv1", None), table.ms("layer1.0.conv1", DepthwiseSeparable(rank=1))     # 1.93, 0.42
    convert(model, example, forms=..., budget=Budget(latency=0.5), latencies=table)

One network is built per form, with the form wherever it fits; the runtime's profile of it says what each site takes in
the company of its neighbours. Law: the sites' milliseconds and `rest_ms` add up to `total_ms`.

A table is of one precision. In int8 everything is, the network as it is among it: the same networks rounded by the
exporter's own steps (`int8.py`), shares of the *dense int8* network. No image is needed: values take no time.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from convsurgeon.base.errors import FormError, LatencyError, describe, reason
from convsurgeon.base.files import new_file, read_text
from convsurgeon.base.precision import Precision
from convsurgeon.base.tables import Table
from convsurgeon.forms.catalogue import Kinds, form_from_dict, kinds_of
from convsurgeon.forms.form import Form
from convsurgeon.graph.capture import Capture, capture
from convsurgeon.graph.model_files import Model
from convsurgeon.onnx import standalone as measuring
from convsurgeon.planning.plan import Plan
from convsurgeon.planning.select import Predicate
from convsurgeon.runtime.attribution import Row, familiar, of_precision, reduce
from convsurgeon.runtime.cache import cache_file, fingerprint
from convsurgeon.runtime.candidates import fitting, uncovered
from convsurgeon.runtime.latencies import NetworkTime
from convsurgeon.runtime.measure import exported, measured, measured_wholes
from convsurgeon.runtime.values import check_precision, count, number, precision_in

_MARK = "convsurgeon_latencies"


@dataclass(frozen=True)
class LatencyTable:
    """What every conv of one network takes on one machine, as it is and in other forms.

    Args:
        rows: one per site as it is, then one per site and form.
        total_ms: of the network as it is.
        networks: milliseconds of every whole network that was built for measuring, by its form's label.
        model: name of the network's class.
        example: its input, in words.
        threads: of the runtime.
        passes: sets of sessions that the figures are medians of.
        machine: where it was measured.
        precision: of all networks, the one as it is among them.
    """

    rows: tuple[Row, ...]
    total_ms: float
    networks: Mapping[str, float]
    model: str
    example: str
    threads: int
    passes: int
    machine: Mapping[str, Any]
    precision: Precision = "fp32"

    @staticmethod
    def measure(
        model: Model,
        example: object,
        forms: Sequence[Form],
        policy: Predicate | None = None,
        *,
        threads: int = 1,
        passes: int = 3,
        precision: Precision = "fp32",
        cache: str | Path | None = None,
        prune: bool = True,
        progress: bool = True,
    ) -> LatencyTable:
        """Measures on this machine, or reads what was measured before.

        Args:
            model: any module that runs on the example, or the path of an ONNX file; left as it was.
            example: as for `convert`; None will do for a file whose sizes are fixed.
            forms: candidates for every site.
            policy: which sites may be touched; the default leaves the stem alone.
            threads: of the runtime.
            passes: sets of fresh sessions; times differ by up to 10 % from one to the next.
            precision: in which the networks run: fp32, or int8 as `export` writes it.
            cache: folder of earlier measurements, one file per network, machine, runtime version, thread count and
                precision; the user's cache folder if not given. A stopped measurement goes on from there.
            prune: leave out what can hardly be faster than dense, judged by the cheapest form of its kind.
            progress: whether a bar appears when it takes longer than two seconds.

        Raises:
            CaptureError: the model does not run on the example.
            ExportError: the model has no ONNX form.
            LatencyError: the network cannot be timed, or the cached file is damaged.
        """
        return LatencyTable.of(
            capture(model, example),
            forms,
            policy,
            threads=threads,
            passes=passes,
            precision=precision,
            cache=cache,
            prune=prune,
            progress=progress,
        )

    @staticmethod
    def of(
        seen: Capture,
        forms: Sequence[Form],
        policy: Predicate | None = None,
        *,
        threads: int = 1,
        passes: int = 3,
        precision: Precision = "fp32",
        cache: str | Path | None = None,
        prune: bool = True,
        progress: bool = True,
    ) -> LatencyTable:
        """`measure` for a model that is captured already."""
        check_precision(precision)
        target = cache_file(cache, fingerprint(seen), threads, precision)
        kinds = kinds_of(forms)
        raw = _stored(target, precision, kinds)
        wanted = uncovered(fitting(seen, forms, policy, precision), raw, passes, prune, kinds)
        if wanted or raw is None:
            how = (target, threads, passes, progress, precision, prune, kinds)
            raw = measured(seen, exported(seen, progress), wanted, *how)
        return _table(familiar(raw, kinds), precision, kinds)

    @staticmethod
    def load(path: str | Path, forms: Kinds = (), *, precision: Precision | None = None) -> LatencyTable:
        """Reads what `save` wrote, or the `device.json` of a device.

        Args:
            path: of the file.
            forms: kinds of form that may be in it beside those that ship.
            precision: that is wanted. A `device.json` holds both, of which fp32 is read where nothing is said; what
                `save` wrote holds one.

        Raises:
            LatencyError: it is none of these, damaged, or of another precision.
        """
        if precision is not None:
            check_precision(precision)
        place = Path(path)
        try:
            values = json.loads(read_text(place))
        except OSError as error:
            raise LatencyError(f"{place}: cannot be read ({reason(error)})") from error
        except (ValueError, RecursionError) as error:
            raise LatencyError(f"{place}: is damaged (no JSON); take another copy, or measure again") from error
        try:
            raw = isinstance(values, dict) and "convsurgeon_device" in values
            if raw:
                wanted: Precision = precision or "fp32"
                return _table(of_precision(values, wanted), wanted, forms)
            return _of_the(precision, _parsed(values, forms))
        except LatencyError as error:
            raise LatencyError(f"{place}: {error}") from error

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Writes the table as JSON.

        Raises:
            WriteError: the file exists, or its folder is missing.
        """
        with new_file(path, overwrite) as draft:
            draft.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    @cached_property
    def _index(self) -> dict[tuple[str, str], Row]:
        return {(row.site, "" if row.form is None else row.form.label): row for row in self.rows}

    def has(self, site: str, form: Form | None) -> bool:
        """Whether this was measured; a form is known by its label, its rank settled."""
        return (site, "" if form is None else form.label) in self._index

    def row(self, site: str, form: Form | None) -> Row:
        """All that is known of a site in a form, or as it is.

        Raises:
            LatencyError: that was not measured.
        """
        try:
            return self._index[site, "" if form is None else form.label]
        except KeyError:
            words = "the site" if form is None else form.label
            raise LatencyError(f"{site}: {words} is not in the table of latencies; measure it with that form") from None

    def ms(self, site: str, form: Form | None) -> float:
        """Milliseconds of a site in a form, or as it is (all its calls).

        Raises:
            LatencyError: that was not measured.
        """
        return self.row(site, form).ms

    @property
    def rest_ms(self) -> float:
        """Everything that is no site."""
        return self.total_ms - sum(row.ms for row in self.rows if row.form is None)

    def predict(self, plan: Plan) -> float:
        """Milliseconds of the whole network once a plan is carried out.

        Raises:
            LatencyError: a site or form of the plan was not measured.
        """
        changes = plan.changes.values()
        gains = (self.ms(change.name, None) - self.ms(change.name, change.form) for change in changes)
        return self.total_ms - sum(gains)

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
        if not measuring.same_machine(dict(self.machine), measuring.machine()) or str(seen.example) != self.example:
            return None
        threads = int(self.machine["cores"]) if all_cores else self.threads
        if all_cores and threads == self.threads:
            return None
        passes = max(1, self.passes)
        dense_ms, found = measured_wholes(
            seen, exported(seen, progress), plans, threads, passes, self.precision, progress
        )
        scale = self.total_ms / dense_ms
        return tuple(
            NetworkTime(scale * one.total_ms, {site: scale * ms for site, ms in one.sites.items()}, one.spread)
            for one in found
        )

    @property
    def table(self) -> Table:
        """One line per site and form."""
        columns = (
            *(("conv", "text"), ("form", "text"), ("ms", "ms"), ("spread", "share"), ("speed_up", "times")),
            ("in the runtime's graph", "text"),
        )
        order = {row.site: place for place, row in enumerate(row for row in self.rows if row.form is None)}
        rows = []
        for row in sorted(self.rows, key=lambda row: order[row.site]):
            dense = self.ms(row.site, None)
            if dense:
                speedup = None if row.form is None or not row.ms else dense / row.ms
                label = "dense" if row.form is None else row.form.label
                rows.append((row.site, label, row.ms, row.spread, speedup, ", ".join(row.flags) or None))
        cpu, runtime = self.machine.get("cpu", "?"), self.machine.get("onnxruntime", "?")
        how = f"{self.precision}, {self.passes} passes, threads {self.threads}, {cpu}, onnxruntime {runtime}"
        title = (
            f"Latency of {self.model} on {self.example}: {self.total_ms:.3f} ms, {self.rest_ms:.3f} of it in no conv "
            f"listed here\n{how}"
        )
        return Table(title, columns, tuple(rows))

    def __str__(self) -> str:
        return self.table.text()

    def to_dict(self) -> dict[str, Any]:
        """The table as JSON."""
        rows = [{**vars(row), "form": row.form.to_dict() if row.form is not None else None} for row in self.rows]
        head = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return {_MARK: 1, **head, "rows": [{**row, "flags": list(row["flags"])} for row in rows]}


def _of_the(precision: Precision | None, table: LatencyTable) -> LatencyTable:
    if precision is not None and table.precision != precision:
        raise LatencyError(f"is a table of {table.precision}, {precision} is wanted; measure one with that precision")
    return table


def _stored(target: Path, precision: Precision, forms: Kinds) -> measuring.Raw | None:
    """What was measured before of forms that are known."""
    try:
        raw = measuring.read(target, "convsurgeon_device") if target.exists() else None
    except measuring.MeasureError as error:
        raise LatencyError(str(error)) from error
    if raw is not None:
        try:
            raw = familiar(of_precision(raw, precision), forms)
            reduce(raw, forms)
        except LatencyError as error:
            raise LatencyError(f"{target}: {error}; delete it to measure again") from error
    return raw


def _table(raw: measuring.Raw, precision: Precision, forms: Kinds) -> LatencyTable:
    figures = reduce(raw, forms)
    head = {name: raw[name] for name in ("model", "example", "threads", "machine")}
    return LatencyTable(
        figures.rows, figures.total_ms, figures.networks, passes=figures.passes, precision=precision, **head
    )


def _parsed(values: Any, forms: Kinds) -> LatencyTable:
    if not isinstance(values, dict) or values.get(_MARK) != 1:
        raise LatencyError("is no table of latencies; make one with LatencyTable.measure(...).save(path)")
    try:
        rows = []
        for row in values["rows"]:
            form = None if row["form"] is None else form_from_dict(row["form"], forms)
            ms, spread = number(row["ms"]), number(row["spread"])
            rows.append(Row(str(row["site"]), form, ms, spread, tuple(map(str, row["flags"]))))
        if not {row.site for row in rows} <= {row.site for row in rows if row.form is None}:
            raise ValueError("a conv is there in a form, but not as it is")
        return LatencyTable(
            tuple(rows),
            number(values["total_ms"], above=0.0),
            {str(name): number(ms) for name, ms in values["networks"].items()},
            str(values["model"]),
            str(values["example"]),
            count(values["threads"]),
            count(values["passes"]),
            dict(values["machine"]),
            precision_in(values.get("precision", "fp32")),
        )
    except (KeyError, TypeError, ValueError, AttributeError, FormError) as error:
        raise LatencyError(f"is damaged ({describe(error)}); measure again") from error
