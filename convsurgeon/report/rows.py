"""Before and after: what a conversion changed, as tables."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from convsurgeon.base.tables import Table
from convsurgeon.distill.reconstruct import Reconstruction
from convsurgeon.distill.record import Recovery
from convsurgeon.fit.fidelity import Fidelity
from convsurgeon.graph.cost import Cost
from convsurgeon.planning.plan import Change, Skip, layer_table
from convsurgeon.search.choice import Judged
from convsurgeon.search.confirm import Timing
from convsurgeon.search.fastest import Attempt


@dataclass(frozen=True)
class Rows:
    """Size and cost of both models, every conv, every parameter tensor, and how near the outputs are.

    `fidelity` holds one entry, or none where the model has no values to compare (meta device). `metrics` are the user's
    own, as (name, before, after), `reconstruction` what calibration did, if there was any, `judged` the plans that were
    weighed under a budget, `timings` the whole networks that were timed, `recovery` what training did, `opaque` the
    modules that could not be traced, each with the reason, `notes` what a reader must know of the images. Costs are
    counted on the models.
    """

    before: Cost
    after: Cost
    steps: tuple[Change | Skip, ...]
    tensors: tuple[tuple[str, tuple[int, ...], int, str], ...]
    fidelity: tuple[Fidelity, ...]
    example: str
    metrics: tuple[tuple[str, float, float], ...] = ()
    reconstruction: tuple[Reconstruction, ...] = ()
    judged: tuple[Judged, ...] = ()
    recovery: tuple[Recovery, ...] = ()
    timings: tuple[Timing, ...] = ()
    opaque: tuple[tuple[str, str], ...] = ()
    attempts: tuple[Attempt, ...] = ()
    limit: str = ""
    """What a network may lose that was searched for, in words."""
    speed: str = ""
    """What was bought in milliseconds, or why nothing was: one sentence."""
    notes: tuple[str, ...] = ()

    @property
    def summary(self) -> Table:
        """Before, after and their ratio."""
        names = ("params", "macs", "flops", "weight_bytes", "peak_activation_bytes")
        pairs = [(name, getattr(self.before, name), getattr(self.after, name)) for name in names]
        rows = [(name, was, now, now / was if was else None) for name, was, now in [*pairs, *self.metrics]]
        columns = (("", "text"), ("before", "number"), ("after", "number"), ("ratio", "ratio"))
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
        return Table("Learnables", columns, tuple(rows))

    @property
    def closeness(self) -> Table:
        """Fidelity on the example, or on held-back images with calibration: original against converted."""
        columns = (("sqnr_db", "decibel"), ("cosine", "number"), ("top1_agreement", "share"), ("rows", "count"))
        rows = ((item.sqnr_db, item.cosine, item.agreement, item.rows) for item in self.fidelity)
        where = "held-back images" if self.reconstruction or self.recovery else "the example"
        return Table(f"Fidelity on {where}: original against converted", columns, tuple(rows))

    @property
    def fits(self) -> Table:
        """Every fitted site: relative output error behind its batch norm and ReLU before and after, samples used."""
        columns = (("layer", "text"), ("error_before", "number"), ("error_after", "number"), ("positions", "count"))
        sites = [site for done in self.reconstruction for site in done.sites]
        rows = ((site.name, site.before, site.after, site.positions, "" if site.kept else "put back") for site in sites)
        return Table("Fits, on samples that were held back", (*columns, ("note", "text")), tuple(rows))

    @property
    def calibrated(self) -> Table:
        """What calibration tried: the whole network's relative output error on held-back images, and what was kept."""
        columns = (("weights", "text"), ("output_error", "number"), ("kept", "text"))
        rows = [(w, e, "yes" if kept else "no") for done in self.reconstruction for w, e, kept in done.steps]
        used = [f", {d.images} images, judged on {d.held_back} others" for d in self.reconstruction]
        return Table(f"Calibration{''.join(used)}", columns, tuple(rows))

    @property
    def weighed(self) -> Table:
        """Under a budget, the plans that were made, by how they rate a layer's error, and which was taken."""
        columns = (("layers rated by", "text"), ("macs", "count"), ("share", "ratio"), ("output_error", "number"))
        rows = (
            (item.measure, item.macs, item.macs / self.before.macs, item.error, "yes" if item.taken else "no")
            for item in self.judged
        )
        title = "Plans within the budget, tried on a part of the images"
        return Table(title, (*columns, ("taken", "text")), tuple(rows))

    @property
    def searched(self) -> Table:
        """Networks that were tried for the fastest within a limit: milliseconds by the table, and what they lose."""
        columns = (("layers rated by", "text"), ("macs", "count"), ("predicted_ms", "ms"), ("speed_up", "times"))
        rows = (
            (*_planned(one), one.value, "yes" if one.enough else "no", "yes" if one.taken else "no")
            for one in self.attempts
        )
        more = (("figure", "number"), ("good_enough", "text"), ("taken", "text"))
        return Table(f"Search for the fastest within {self.limit}", (*columns, *more), tuple(rows))

    @property
    def recovered(self) -> Table:
        """What training did: distance to the original and agreement with it on held-back images, before and after."""
        columns = (("weights", "text"), ("distance", "number"), ("top1_agreement", "share"))
        rows = []
        for done in self.recovery:
            kept = f"step {done.best_step} of {done.steps}"
            rows += [("as converted", done.before.distance, done.before.agreement)]
            rows += [(kept if done.best_step else "as converted, kept", done.after.distance, done.after.agreement)]
        used = [
            f": {d.images} images, judged on {d.held_back} others, rate {d.lr:.0e}, {d.seconds:.0f} s, {d.ended}"
            + ("; still gaining: recover this result once more" if d.gaining else "")
            for d in self.recovery
        ]
        return Table(f"Recovery{''.join(used)}", columns, tuple(rows))

    @property
    def timed(self) -> Table:
        """Under a latency budget: what the table promised of every plan and what its whole network took."""
        columns = (("plan", "text"), ("predicted_ms", "ms"), ("measured_ms", "ms"), ("spread", "share"))
        rows = []
        for one in self.timings:
            limit = one.limit_ms if math.isfinite(one.limit_ms) else None
            name = one.measure if one.round == 1 else f"{one.measure}, revised {one.round - 1}x"
            off = one.measured_ms / one.predicted_ms - 1
            times = (one.predicted_ms, one.measured_ms, one.spread, off, limit, one.dense_ms / one.measured_ms)
            rows.append((name, *times, ", ".join(one.slower) or None, "yes" if one.taken else "no"))
        more = (
            ("off", "share"),
            ("limit_ms", "ms"),
            ("speed_up", "times"),
            ("slower_layers", "text"),
            ("taken", "text"),
        )
        return Table("Whole networks, timed", (*columns, *more), tuple(rows))

    @property
    def tables(self) -> tuple[Table, ...]:
        """All that hold something, in the order of reading."""
        tried = (self.searched, self.weighed, self.timed, self.calibrated, self.recovered)
        every = (self.summary, self.closeness, *tried, self.layers, self.fits, self.untraced, self.learnables)
        return tuple(table for table in every if table.rows)


def _planned(one: Attempt) -> tuple[str, int, float, float]:
    return one.measure, one.macs, one.predicted_ms, one.dense_ms / one.predicted_ms


def learnable_rows(before: nn.Module, after: nn.Module) -> tuple[tuple[str, tuple[int, ...], int, str], ...]:
    """Rows of the learnables table: name, shape, elements, and `both`, `before` or `after`; shared tensors once."""
    old, new = dict(before.named_parameters()), dict(after.named_parameters())

    def rows(names: Iterable[str], tensors: dict[str, nn.Parameter], where: str) -> list[Any]:
        return [(name, tuple(tensors[name].shape), tensors[name].numel(), where) for name in names]

    kept = [name for name in old if name in new]
    gone = [name for name in old if name not in new]
    come = [name for name in new if name not in old]
    return (*rows(kept, old, "both"), *rows(gone, old, "before"), *rows(come, new, "after"))
