"""Spares timing what can hardly pay: the cheapest form of each kind is timed first, dearer ones are judged by it.

A form with twice the branches takes about twice as long: `SLACK` times that is a bound under which hardly one falls,
and what is not faster than dense even there is not built. The table decides about everything else. A roofline through
the dense layers alone spares nothing: in a CIFAR ResNet-20 it rules out none of 173 candidates, of which 54 are slower
than dense, because branches are bound by memory and by calls where dense convs are bound by arithmetic. This one ruled
out 41 there, one of them wrongly.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence

from convsurgeon.forms.form import Form
from convsurgeon.graph.site import Site
from convsurgeon.runtime.attribution import Row
from convsurgeon.runtime.candidate_folder import Candidate
from convsurgeon.runtime.latencies import GAIN

SLACK = 0.7


def cheapest(candidates: Sequence[Candidate], sites: Mapping[str, Site]) -> list[Candidate]:
    """Of every kind of form the candidate with the fewest MACs."""
    found: dict[str, Candidate] = {}
    for one in sorted(candidates, key=lambda one: _mean_macs(one, sites)):
        found.setdefault(_kind(next(iter(one.chosen.values()))), one)
    return list(found.values())


def hopeless(candidates: Sequence[Candidate], rows: Sequence[Row], sites: Mapping[str, Site]) -> list[tuple[str, str]]:
    """Sites with labels of forms that take longer than dense by the bound.

    Args:
        candidates: what is still to be timed.
        rows: what was timed.
        sites: all sites by name.
    """
    dense = {row.site: row.ms for row in rows if row.form is None}
    timed = {(row.site, row.form.label) for row in rows if row.form is not None}
    rates: dict[tuple[str, str], float] = {}  # ms per MAC of the cheapest form of a kind at a site
    macs: dict[tuple[str, str], float] = {}
    for row in rows:
        if row.form is not None:
            key, own = (row.site, _kind(row.form)), _macs(sites[row.site], row.form)
            if own < macs.get(key, float("inf")):
                macs[key], rates[key] = own, row.ms / own
    return [
        (name, form.label)
        for one in candidates
        for name, form in one.chosen.items()
        if (name, form.label) not in timed
        and GAIN * SLACK * rates.get((name, _kind(form)), 0.0) * _macs(sites[name], form) > dense[name]
    ]


def without(candidates: Sequence[Candidate], left_out: Sequence[tuple[str, str]]) -> list[Candidate]:
    """The candidates without some of their sites; those that have none left go."""
    out = set(left_out)
    made = [
        dataclasses.replace(
            one, chosen={name: form for name, form in one.chosen.items() if (name, form.label) not in out}
        )
        for one in candidates
    ]
    return [one for one in made if one.chosen]


def _kind(form: Form) -> str:
    """Everything about a form but its rank."""
    return json.dumps({name: value for name, value in form.to_dict().items() if name != "rank"}, sort_keys=True)


def _macs(site: Site, form: Form) -> float:
    return float(sum(site.images(call) * form.macs(site.geometry, site.size(call)) for call in site.calls))


def _mean_macs(one: Candidate, sites: Mapping[str, Site]) -> float:
    """Mean share of the dense MACs: candidates may cover different sites."""
    return sum(_macs(sites[name], form) / sites[name].macs for name, form in one.chosen.items()) / len(one.chosen)
