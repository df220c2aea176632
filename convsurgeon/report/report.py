"""A report of a conversion: what it changed, as tables, text, Markdown, CSV and JSON."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Self

import msgspec
from torch import nn

from convsurgeon.base.tables import Table, in_markdown, printable
from convsurgeon.distill.reconstruct import Reconstruction
from convsurgeon.distill.record import Recovery
from convsurgeon.fit.fidelity import Fidelity
from convsurgeon.graph.cost import Cost
from convsurgeon.planning.plan import Change, Skip, layer_table
from convsurgeon.search.trial import Trial

TensorRow = tuple[str, tuple[int, ...], int, str]


@dataclass(frozen=True)
class Report:
    """Size and cost of both models, every conv, every parameter tensor, and how near the outputs are.

    Args:
        before: what the original costs, counted on it.
        after: what the converted model costs, counted on it.
        steps: every conv that was changed, or left as it was.
        tensors: every parameter tensor: name, shape, elements, and the model that holds it.
        fidelity: of the outputs; None where they cannot be compared (meta device).
        example: shapes of the inputs.
        metrics: the user's own figures: name, before, after.
        reconstruction: what the fit to the calibration set did.
        trials: plans that a search tried.
        goal: what the search was asked for, in words.
        recovery: what training did.
        opaque: modules that could not be traced, with the reason.
        speed: what was gained in milliseconds, or why nothing was: one sentence.
        outlook: why a search ended where it did, and what a larger tolerance would allow; empty if nothing.
        notes: what a reader must know of the images.
        warning: why the results may be wrong, in one sentence that comes before all others; empty where they are not.
        seconds: that the conversion took.
        processor_seconds: that a processor worked for it, over all threads.
    """

    before: Cost
    after: Cost
    steps: tuple[Change | Skip, ...]
    tensors: tuple[TensorRow, ...]
    fidelity: Fidelity | None
    example: str
    metrics: tuple[tuple[str, float, float], ...] = ()
    reconstruction: Reconstruction | None = None
    trials: tuple[Trial, ...] = ()
    goal: str = ""
    recovery: Recovery | None = None
    opaque: tuple[tuple[str, str], ...] = ()
    speed: str = ""
    outlook: str = ""
    notes: tuple[str, ...] = ()
    warning: str = ""
    seconds: float = math.nan
    processor_seconds: float = math.nan

    def with_metric(self, name: str, before: float, after: float) -> Self:
        """Return the report with one more line in its summary."""
        return dataclasses.replace(self, metrics=(*self.metrics, (name, before, after)))

    @property
    def tables(self) -> tuple[Table, ...]:
        """All tables that hold something, in the order of reading."""
        tried = (self.tried, self.calibrated, self.recovered)
        every = (self.summary, self.closeness, *tried, self.layers, self.fits, self.untraced, self.learnables)
        return tuple(table for table in every if table.rows)

    def __str__(self) -> str:
        rewritten = sum(isinstance(step, Change) for step in self.steps)
        tried = (self.tried, self.calibrated, self.recovered)
        shown = (self.layers, self.untraced, self.fits, *tried, self.summary, self.closeness)
        notes = [f"note: {note}" for note in self.notes]
        return "\n\n".join(
            [
                *map(printable, filter(None, (self.warning, self.speed, self.outlook, *notes))),
                *(table.text() for table in shown if table.rows),
                f"{rewritten} of {len(self.steps)} convs rewritten.",
            ]
        )

    def to_markdown(self) -> str:
        """Return a page with all tables."""
        remarks = map(in_markdown, filter(None, (self.warning, self.speed, self.outlook, *self.notes)))
        parts = ["# convsurgeon report", *remarks, *(table.markdown() for table in self.tables)]
        return "\n\n".join(parts) + "\n"

    def to_csv(self) -> str:
        """Return the table of layers, raw values."""
        return self.layers.csv()

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return {
            "example": self.example,
            "warning": self.warning,
            "notes": list(self.notes),
            "summary": self.summary.records(),
            "fidelity": None if self.fidelity is None else msgspec.to_builtins(self.fidelity),
            "speed": self.speed,
            "outlook": self.outlook,
            "goal": self.goal,
            "trials": self.tried.records(),
            "calibration": self.calibrated.records(),
            "recovery": self.recovered.records(),
            "layers": self.layers.records(),
            "fits": self.fits.records(),
            "untraced": self.untraced.records(),
            "learnables": self.learnables.records(),
        }

    def to_json(self) -> str:
        """Return `to_dict` as text."""
        return msgspec.json.format(msgspec.json.encode(self.to_dict()), indent=1).decode()

    @property
    def summary(self) -> Table:
        """Before, after and their ratio."""
        names = ("params", "macs", "flops", "weight_bytes", "peak_activation_bytes")
        pairs = [(name, getattr(self.before, name), getattr(self.after, name)) for name in names]
        rows = [(name, was, now, now / was if was else None) for name, was, now in [*pairs, *self.metrics]]
        columns = (("", "name"), ("before", "number"), ("after", "number"), ("ratio", "ratio"))
        return Table(f"Size and cost for an input of {self.example}", columns, tuple(rows))

    @property
    def layers(self) -> Table:
        """Every conv: shape, form, what is lost, parameters and MACs before and after, or why it was left alone."""
        return layer_table(self.steps)

    @property
    def untraced(self) -> Table:
        """What torch.fx could not look into: its convs are changed and fitted all the same, but one run each."""
        rows = ((name or "the whole model", reason) for name, reason in self.opaque)
        return Table("Not traced; fitting there is slower", (("module", "text"), ("reason", "text")), tuple(rows))

    @property
    def learnables(self) -> Table:
        """Every parameter tensor, with whether it is in the model before, after, or both."""
        columns = (("tensor", "text"), ("shape", "text"), ("elements", "count"), ("in", "text"))
        rows = ((name, "x".join(map(str, shape)), count, where) for name, shape, count, where in self.tensors)
        return Table("Parameter tensors", columns, tuple(rows))

    @property
    def closeness(self) -> Table:
        """Fidelity on the example, or on held-out images with calibration: original against converted."""
        columns = [("sqnr_db", "decibel"), ("cosine", "number"), ("top1_agreement", "share"), ("rows", "count")]
        one = self.fidelity
        rows: tuple[tuple[Any, ...], ...] = ()
        if one is not None:
            low = None if one.interval is None else one.interval[0]
            more = (
                ("at_least", "share", low),
                ("class_overlap", "share", one.overlap),
                ("added_db", "decibel", one.added_db),
            )
            held = [column for column in more if column[2] is not None]
            columns += [(name, kind) for name, kind, _ in held]
            rows = ((one.sqnr_db, one.cosine, one.agreement, one.rows, *(value for _, _, value in held)),)
        where = "held-out images" if self.reconstruction or self.recovery else "the example"
        where += f", at {one.where}" if one is not None and one.where else ""
        return Table(f"Fidelity on {where}: original against converted", tuple(columns), rows)

    @property
    def fits(self) -> Table:
        """Every fitted site: relative output error behind its batch norm and ReLU before and after, samples used."""
        columns = (("layer", "text"), ("error_before", "number"), ("error_after", "number"), ("samples", "count"))
        sites = () if self.reconstruction is None else self.reconstruction.sites
        rows = (
            (site.name, site.before, site.after, site.positions, None if site.kept else "fit not kept")
            for site in sites
        )
        return Table("Fits, on held-out samples", (*columns, ("note", "text")), tuple(rows))

    @property
    def calibrated(self) -> Table:
        """What calibration tried: the whole network's relative output error on held-out images, and what was kept."""
        columns = (("weights", "text"), ("output_error", "number"), ("kept", "text"))
        done = self.reconstruction
        if done is None:
            return Table("Calibration", columns, ())
        rows = tuple((what, error, "yes" if kept else "no") for what, error, kept in done.steps)
        return Table(f"Calibration, {done.images} images, judged on {done.held_back} others", columns, rows)

    @property
    def tried(self) -> Table:
        """Plans that a search tried: cost, milliseconds predicted and measured, what they lose, which was taken."""
        columns = (
            *(("macs", "count"), ("share", "ratio"), ("predicted_ms", "ms"), ("measured_ms", "ms")),
            *(("spread", "share"), ("speed_up", "times"), ("output_error", "number"), ("decisions_lost", "share")),
            *(("metric", "number"), ("spent", "share"), ("good_enough", "text")),
            *(("slower_layers", "text"), ("taken", "text")),
        )
        rows = (
            (
                one.plan.macs_after,
                one.plan.macs_after / self.before.macs,
                _known(one.predicted_ms),
                _known(one.measured_ms),
                one.spread if one.is_timed else None,
                _known(one.speed_up),
                _known(one.error),
                _known(one.lost),
                _known(one.value) if self.metrics else None,
                _known(max(one.spent, 0.0)),
                "yes" if one.good_enough else "no",
                ", ".join(one.slower) or None,
                "yes" if one.taken else "no",
            )
            for one in self.trials
        )
        return Table(f"Plans that were tried for {self.goal}", columns, tuple(rows))

    @property
    def recovered(self) -> Table:
        """What training did: output error and agreement with the original on held-out images, before and after."""
        columns = (("weights", "text"), ("output_error", "number"), ("top1_agreement", "share"))
        done = self.recovery
        if done is None:
            return Table("Recovery", columns, ())
        kept = f"step {done.best_step} of {done.steps}" if done.best_step else "as converted, kept"
        rows = (
            ("as converted", done.before.error, done.before.agreement),
            (kept, done.after.error, done.after.agreement),
        )
        used = f"{done.images} images, judged on {done.held_back} others, rate {done.lr:.0e}, {done.seconds:.0f} s"
        more = "; still gaining: recover this result once more" if done.gaining else ""
        return Table(f"Recovery: {used}, {done.ended}{more}", columns, rows)


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def learnable_rows(before: nn.Module, after: nn.Module) -> tuple[TensorRow, ...]:
    """Return name, shape, elements, and `both`, `before` or `after` of every parameter tensor; shared ones once."""
    old, new = dict(before.named_parameters()), dict(after.named_parameters())
    every = {name: "both" if name in new else "before" for name in old}
    every |= {name: "after" for name in new if name not in old}
    order = sorted(every, key=lambda name: ("both", "before", "after").index(every[name]))
    tensors = new | old
    return tuple((name, tuple(tensors[name].shape), tensors[name].numel(), every[name]) for name in order)
