"""Which networks to build and time: one per form, with the form at every site that it fits; and which of them not to.

A form with twice the branches takes about twice as long. So the cheapest form of every kind is timed first, and sites
at which a dearer one would be slower than dense even at `SLACK` times that estimate are left out.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from convsurgeon.base.errors import LatencyError
from convsurgeon.base.precision import Precision
from convsurgeon.forms.catalogue import Kinds, form_from_dict
from convsurgeon.forms.form import Form
from convsurgeon.graph.capture import Capture
from convsurgeon.graph.site import Site
from convsurgeon.onnxnet.measuring.folder import LONG_PASSES, is_long
from convsurgeon.planning.candidates import kernels_of, settle
from convsurgeon.planning.select import Predicate, everything, resolve
from convsurgeon.runtime.attribution import Row
from convsurgeon.runtime.latencies import GAIN
from convsurgeon.runtime.measurements import Measurements

SLACK = 0.7


@dataclass(frozen=True)
class Candidate:
    """One network to be timed: a label, and the settled form of every site that it changes."""

    label: str
    chosen: Mapping[str, Form]
    as_it_was: bool = False
    """Whether it is the network as torch writes it or as it is stored."""

    def key(self, precision: Precision) -> str:
        """Return a name that is the same for the same forms at the same sites."""
        values = {name: form.to_dict() for name, form in sorted(self.chosen.items())}
        text = (
            json.dumps(values, sort_keys=True)
            + ("" if precision == "fp32" else precision)
            + self.as_it_was * "as it was"
        )
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def without(self, sites: Container[str]) -> Candidate:
        """Return the candidate without some of its sites."""
        return replace(self, chosen={name: form for name, form in self.chosen.items() if name not in sites})


def candidates_of(seen: Capture, forms: Iterable[Form], policy: Predicate | None) -> list[Candidate]:
    """Return one candidate per form, with its settled form at every site that takes it, more MACs or fewer.

    Forms that share no site, those of k x k and of 1x1 convs, stand in one network: it takes as long to time as either.
    """
    chosen, _ = resolve(everything() if policy is None else policy, seen.sites)
    kernels = kernels_of(seen)
    open_sites = [site for site in seen.sites if not site.obstacle and chosen(site)]
    found: list[Candidate] = []
    for form in forms:
        fits = {}
        for site in open_sites:
            settles = settle(site, kernels[site.name], form, allow_growth=True)
            if not isinstance(settles, str):
                fits[site.name] = settles
        if fits:
            check_timeable(fits)
            _add(found, Candidate(form.label, fits))
    return found


def _add(found: list[Candidate], one: Candidate) -> None:
    """Append a candidate, or merge it with the first one that it shares no site with."""
    for place, other in enumerate(found):
        if not other.chosen.keys() & one.chosen.keys():
            found[place] = Candidate(f"{other.label}, {one.label}", {**other.chosen, **one.chosen})
            return
    found.append(one)


def check_timeable(forms: Mapping[str, Form]) -> None:
    """Refuse forms of more than plain convs."""
    for name, form in forms.items():
        if not form.plain:
            raise LatencyError(f"{name}: {form.label} cannot be timed; only forms of plain convs can")


def find_missing(
    candidates: Sequence[Candidate], raw: Measurements | None, passes: int, forms: Kinds = ()
) -> list[Candidate]:
    """Return the candidates with a site whose form was not yet timed in every pass.

    A candidate that was begun keeps its network; of another only the sites that are missing are built. `raw` is what
    was measured of this precision, if anything was.
    """
    begun = {} if raw is None else raw.networks
    if raw is not None and any(is_long(sample.total_ms) for sample in raw.dense):
        passes = min(passes, LONG_PASSES)
    counts = Counter(sample.network for sample in (() if raw is None else raw.samples))
    done = {
        (site, form_from_dict(values, forms).label)
        for key, network in begun.items()
        if counts[key] >= passes
        for site, values in network.forms.items()
    }
    left = []
    for one in candidates:
        whole = one if raw is None else one.without(raw.barred)
        missing = whole.without([name for name, form in whole.chosen.items() if (name, form.label) in done])
        if missing.chosen:
            made = whole if raw is not None and whole.key(raw.precision) in begun else missing
            left.append(made)
            done |= {(name, form.label) for name, form in made.chosen.items()}
    return left


def find_cheapest(candidates: Sequence[Candidate], sites: Mapping[str, Site]) -> list[Candidate]:
    """Return the candidate with the fewest MACs of every kind of form."""

    def mean_share(one: Candidate) -> float:  # a mean, because candidates may cover different sites
        return fmean(sites[name].macs_as(form) / sites[name].macs for name, form in one.chosen.items())

    found: dict[str, Candidate] = {}
    for one in sorted(candidates, key=mean_share):
        found.setdefault(_kind(next(iter(one.chosen.values()))), one)
    return list(found.values())


def leave_out_slow(candidates: Sequence[Candidate], rows: Sequence[Row], sites: Mapping[str, Site]) -> list[Candidate]:
    """Return the candidates without the sites at which they can hardly be faster than dense; what was timed stays."""
    dense = {row.site: row.ms for row in rows if row.form is None}
    timed = {(row.site, row.form.label) for row in rows if row.form is not None}
    cheapest: dict[tuple[str, str], tuple[float, float]] = {}  # MACs and milliseconds of the cheapest form of a kind
    for row in rows:
        if row.form is not None:
            own = (sites[row.site].macs_as(row.form), row.ms)
            key = (row.site, _kind(row.form))
            cheapest[key] = min(own, cheapest.get(key, own))

    def is_slow(name: str, form: Form) -> bool:
        macs, ms = cheapest.get((name, _kind(form)), (1.0, 0.0))
        estimate = ms / macs * sites[name].macs_as(form)
        return (name, form.label) not in timed and GAIN * SLACK * estimate > dense[name]

    left = [one.without([name for name, form in one.chosen.items() if is_slow(name, form)]) for one in candidates]
    return [one for one in left if one.chosen]


def _kind(form: Form) -> str:
    """Return everything about a form but its rank."""
    return json.dumps({name: value for name, value in form.to_dict().items() if name != "rank"}, sort_keys=True)
