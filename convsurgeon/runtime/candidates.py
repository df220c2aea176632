"""Which networks to build and time: one per form, with the form at every site that it fits; and which of them not to.

A form with twice the branches takes about twice as long. So the cheapest form of every kind is timed first, and sites
at which a dearer one would be slower than dense even at `SLACK` times that estimate are left out.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

from convsurgeon.base.errors import LatencyError
from convsurgeon.base.precision import Precision
from convsurgeon.forms.catalogue import Kinds, form_from_dict
from convsurgeon.forms.form import Form
from convsurgeon.graph.capture import Capture
from convsurgeon.graph.site import Site
from convsurgeon.planning.candidates import kernels_of, settle
from convsurgeon.planning.select import Predicate, resolve
from convsurgeon.runtime.attribution import Row
from convsurgeon.runtime.latencies import GAIN
from convsurgeon.runtime.measurements import Measurements

SLACK = 0.7


@dataclass(frozen=True)
class Candidate:
    """One network to be timed: a label, the settled form of every site that it changes, and its precision."""

    label: str
    chosen: Mapping[str, Form]
    precision: Precision = "fp32"

    @property
    def key(self) -> str:
        """Return a name that is the same for the same forms at the same sites."""
        values = {name: form.to_dict() for name, form in sorted(self.chosen.items())}
        text = json.dumps(values, sort_keys=True) + ("" if self.precision == "fp32" else self.precision)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def without(self, sites: Container[str]) -> Candidate:
        """Return the candidate without some of its sites."""
        left = {name: form for name, form in self.chosen.items() if name not in sites}
        return dataclasses.replace(self, chosen=left)


def candidates_of(
    seen: Capture, forms: Iterable[Form], policy: Predicate | None, precision: Precision = "fp32"
) -> list[Candidate]:
    """Return one candidate per form, with its settled form at every site that takes it, more MACs or fewer.

    Forms that share no site, those of k x k and of 1x1 convs, stand in one network: it takes as long to time as either.

    Raises:
        LatencyError: a form cannot be timed.
        PolicyError: a name in the policy fits no conv.
    """
    chosen, _ = resolve(policy, seen.sites)
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
            _add(found, Candidate(form.label, fits, precision))
    return found


def _add(found: list[Candidate], one: Candidate) -> None:
    """Append a candidate, or merge it with the first one that it shares no site with."""
    for place, other in enumerate(found):
        if not other.chosen.keys() & one.chosen.keys():
            both = {**other.chosen, **one.chosen}
            found[place] = Candidate(f"{other.label}, {one.label}", both, one.precision)
            return
    found.append(one)


def check_timeable(forms: Mapping[str, Form]) -> None:
    """Refuse forms of more than plain convs.

    Raises:
        LatencyError: there is one.
    """
    for name, form in forms.items():
        if not form.plain:
            raise LatencyError(f"{name}: {form.label} cannot be timed; only forms of plain convs can")


def find_missing(
    candidates: Sequence[Candidate], raw: Measurements | None, passes: int, forms: Kinds = ()
) -> list[Candidate]:
    """Return the candidates with a site whose form was not yet timed in every pass.

    A candidate that was begun keeps its network; of another only the sites that are missing are built.

    Args:
        candidates: what is wanted.
        raw: what was measured of this precision, if anything was.
        passes: that are wanted.
        forms: kinds of form beside those of the package.
    """
    barred = raw.barred if raw is not None else {}
    begun = raw.networks if raw is not None else {}
    done = _timed(raw, passes, forms) if raw is not None else set()
    left: dict[str, Candidate] = {}
    for one in candidates:
        whole = one.without(barred)
        missing = whole.without([name for name, form in whole.chosen.items() if (name, form.label) in done])
        if missing.chosen:
            made = whole if whole.key in begun else missing
            left[made.key] = made
            done |= {(name, form.label) for name, form in made.chosen.items()}
    return list(left.values())


def _timed(raw: Measurements, passes: int, forms: Kinds) -> set[tuple[str, str]]:
    """Return the sites and forms that were timed in every pass."""
    counts = Counter(sample.network for sample in raw.samples)
    return {
        (site, form_from_dict(values, forms).label)
        for key, network in raw.networks.items()
        if counts[key] >= passes
        for site, values in network.forms.items()
    }


def find_cheapest(candidates: Sequence[Candidate], sites: Mapping[str, Site]) -> list[Candidate]:
    """Return the candidate with the fewest MACs of every kind of form."""
    found: dict[str, Candidate] = {}
    for one in sorted(candidates, key=lambda one: _mean_macs(one, sites)):
        found.setdefault(_kind(next(iter(one.chosen.values()))), one)
    return list(found.values())


def find_slow(candidates: Sequence[Candidate], rows: Sequence[Row], sites: Mapping[str, Site]) -> list[tuple[str, str]]:
    """Return the sites, with labels of forms, that can hardly be faster than dense.

    Args:
        candidates: what is still to be timed.
        rows: what was timed.
        sites: all sites by name.
    """
    dense = {row.site: row.ms for row in rows if row.form is None}
    timed = {(row.site, row.form.label) for row in rows if row.form is not None}
    cheapest: dict[tuple[str, str], tuple[float, float]] = {}  # MACs and milliseconds of the cheapest form of a kind
    for row in rows:
        if row.form is not None:
            own = (_macs(sites[row.site], row.form), row.ms)
            key = (row.site, _kind(row.form))
            cheapest[key] = min(own, cheapest.get(key, own))
    found = []
    for one in candidates:
        for name, form in one.chosen.items():
            macs, ms = cheapest.get((name, _kind(form)), (1.0, 0.0))
            if (name, form.label) not in timed and GAIN * SLACK * ms / macs * _macs(sites[name], form) > dense[name]:
                found.append((name, form.label))
    return found


def leave_out(candidates: Sequence[Candidate], pairs: Iterable[tuple[str, str]]) -> list[Candidate]:
    """Return the candidates without some sites, given with labels of forms; a candidate that has none left goes."""
    out = set(pairs)
    made = [one.without([name for name, form in one.chosen.items() if (name, form.label) in out]) for one in candidates]
    return [one for one in made if one.chosen]


def _kind(form: Form) -> str:
    """Return everything about a form but its rank."""
    return json.dumps({name: value for name, value in form.to_dict().items() if name != "rank"}, sort_keys=True)


def _macs(site: Site, form: Form) -> float:
    return float(sum(site.images(call) * form.macs(site.geometry, site.size(call)) for call in site.calls))


def _mean_macs(one: Candidate, sites: Mapping[str, Site]) -> float:
    """Return the mean share of the dense MACs: candidates may cover different sites."""
    return sum(_macs(sites[name], form) / sites[name].macs for name, form in one.chosen.items()) / len(one.chosen)
