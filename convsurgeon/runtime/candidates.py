"""Which networks to build and time, as few as have every form at every site once; and which forms not to time.

A form with twice the branches takes about twice as long. So the cheapest form of every kind is timed first, and sites
at which a dearer one would be slower than dense even at `SLACK` times that estimate are left out.

From `FULL_RANK` on a form's time is a straight line in its rank, nearly. So of a slow network the smallest, a middle
and the largest of such ranks are timed, and the table draws the line.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

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
FULL_RANK = 16
"""Below it a rank may take as long as a larger one: the runtime computes so many channels at once."""


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
    """Return one candidate per form, with its settled form at every site that takes it, more MACs or fewer."""
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
            found.append(Candidate(form.label, fits))
    return found


def check_timeable(forms: Mapping[str, Form]) -> None:
    """Refuse forms of more than plain convs."""
    for name, form in forms.items():
        if not form.plain:
            raise LatencyError(f"{name}: {form.label} cannot be timed; only forms of plain convs can")


def find_missing(
    candidates: Sequence[Candidate], raw: Measurements | None, passes: int, forms: Kinds = ()
) -> list[Candidate]:
    """Return the networks in which what was not yet timed in every pass is timed, as few as possible.

    A network that was begun stays as it is. `raw` is what was measured of this precision, if anything was.
    """
    if raw is None:
        return pack(candidates)
    if any(is_long(sample.total_ms) for sample in raw.dense):
        passes = min(passes, LONG_PASSES)
    left = {
        (name, form.label): form for one in candidates for name, form in one.chosen.items() if name not in raw.barred
    }
    counts = Counter(sample.network for sample in raw.samples)
    begun: list[Candidate] = []
    for key in sorted(raw.networks, key=lambda key: -counts[key]):
        network = raw.networks[key]
        made = [(site, form_from_dict(values, forms).label) for site, values in network.forms.items()]
        if counts[key] >= passes:
            for pair in made:
                left.pop(pair, None)
        elif made and all(pair in left for pair in made):
            begun.append(Candidate(network.label, {pair[0]: left.pop(pair) for pair in made}))
    rest = []
    for one in candidates:
        pairs = [(name, form.label) for name, form in one.chosen.items()]
        rest.append(replace(one, chosen={pair[0]: left.pop(pair) for pair in pairs if pair in left}))
    return begun + pack(rest)


def networks_with(candidates: Sequence[Candidate], raw: Measurements, forms: Kinds = ()) -> set[str]:
    """Return the keys of the networks in which forms of the candidates were timed; the dense one's if there is none."""
    pairs = {(name, form.label) for one in candidates for name, form in one.chosen.items()}
    found = {
        key
        for key, network in raw.networks.items()
        for site, values in network.forms.items()
        if (site, form_from_dict(values, forms).label) in pairs
    }
    return found or {raw.dense[0].network}


def pack(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Return as few candidates as possible with the same forms at the same sites: the first has room for the next's."""
    found: list[Candidate] = []
    for one in candidates:
        left = dict(one.chosen)
        for place, other in enumerate(found):
            if moved := {name: left.pop(name) for name in list(left) if name not in other.chosen}:
                found[place] = Candidate(f"{other.label}, {one.label}", {**other.chosen, **moved})
        if left:
            found.append(Candidate(one.label, left))
    return found


def find_cheapest(candidates: Sequence[Candidate], sites: Mapping[str, Site]) -> list[Candidate]:
    """Return for every kind of form a candidate with the form of the fewest MACs at every site."""
    found: dict[str, Candidate] = {}
    for one in candidates:
        for name, form in one.chosen.items():
            chosen = found.setdefault(kind_of(form), replace(one, chosen={})).chosen
            if name not in chosen or sites[name].macs_as(form) < sites[name].macs_as(chosen[name]):
                found[kind_of(form)] = replace(one, chosen={**chosen, name: form})
    return list(found.values())


def leave_out_slow(candidates: Sequence[Candidate], rows: Sequence[Row], sites: Mapping[str, Site]) -> list[Candidate]:
    """Return the candidates without the sites at which they can hardly be faster than dense; what was timed stays."""
    dense = {row.site: row.ms for row in rows if row.form is None}
    timed = {(row.site, row.form.label) for row in rows if row.form is not None}
    cheapest: dict[tuple[str, str], tuple[float, float]] = {}  # MACs and milliseconds of the cheapest form of a kind
    for row in rows:
        if row.form is not None:
            own = (sites[row.site].macs_as(row.form), row.ms)
            key = (row.site, kind_of(row.form))
            cheapest[key] = min(own, cheapest.get(key, own))

    def is_slow(name: str, form: Form) -> bool:
        macs, ms = cheapest.get((name, kind_of(form)), (1.0, 0.0))
        estimate = ms / macs * sites[name].macs_as(form)
        return (name, form.label) not in timed and GAIN * SLACK * estimate > dense[name]

    left = [one.without([name for name, form in one.chosen.items() if is_slow(name, form)]) for one in candidates]
    return [one for one in left if one.chosen]


def leave_out_between(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates without the forms whose milliseconds lie on the line between those of others."""
    ranks: dict[tuple[str, str], set[int]] = {}
    for name, form in (item for one in candidates for item in one.chosen.items()):
        if rank := full_rank(form):
            ranks.setdefault((name, kind_of(form)), set()).add(rank)

    def is_between(name: str, form: Form) -> bool:
        if not (rank := full_rank(form)):
            return False
        found = ranks[name, kind_of(form)]
        middle = min(found, key=lambda one: abs(2 * one - min(found) - max(found)))
        return rank not in (min(found), middle, max(found))

    left = [one.without([name for name, form in one.chosen.items() if is_between(name, form)]) for one in candidates]
    return [one for one in left if one.chosen]


def full_rank(form: Form) -> int:
    """Return the rank of a form if it is one from which on milliseconds go with the rank, else 0."""
    rank = form.to_dict().get("rank")
    return rank if isinstance(rank, int) and rank >= FULL_RANK else 0


def kind_of(form: Form) -> str:
    """Return everything about a form but its rank."""
    return json.dumps({name: value for name, value in form.to_dict().items() if name != "rank"}, sort_keys=True)
