"""From the time of every node, by the runtime's profiler, to milliseconds of every site in every form.

The nodes of a site are its own and those that its form adds to the graph: an addition or activation that the runtime no
longer fuses, and changes of layout or precision that the dense network does not have there. The profiler adds about as
much to every node, so the difference to the unprofiled time is spread over the nodes evenly. Every pass is scaled by
what the dense network took in it, and the median over the passes stands.

Law: in every pass the sites and everything else add up to the whole network.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from convsurgeon.base.errors import FormError, LatencyError
from convsurgeon.forms.catalogue import Kinds, form_from_dict
from convsurgeon.forms.form import Form
from convsurgeon.onnxnet.convs import CONVS
from convsurgeon.onnxnet.measuring.folder import STRETCH
from convsurgeon.onnxnet.session import LAYOUT_CHANGES
from convsurgeon.runtime.measurements import Measurements, NodeFacts, Sample

_NUMBER = re.compile(r"node-(\d+)")
_LEAST = 0.05
"""Share of a profiled time that a node keeps at least when the profiler's own time is taken off."""
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Row:
    """What all calls of a site take in one form, or as it is (None)."""

    site: str
    form: Form | None
    ms: float
    spread: float
    """Half the range over the passes, as a share of `ms`."""


@dataclass(frozen=True)
class _Executed:
    """One executed node, with what the file knows of it.

    `index` is -1 for a node that the runtime inserted, and `near` then the site that the node stands next to.
    """

    index: int
    operator: str
    ms: float
    site: str = ""
    near: str = ""


def attribute(raw: Measurements, forms: Kinds = ()) -> tuple[Row, ...]:
    """Return every site as it is and in every form that was timed, from measurements of one precision."""
    dense = _executed(raw, raw.dense[0])
    alone = {(one.near, one.operator) for one in dense if one.index >= 0 and not one.site}
    layout = Counter((one.operator, one.near) for one in dense if one.index < 0)
    found: dict[str, list[dict[str, float]]] = {}
    for sample in raw.samples:
        found.setdefault(sample.network, []).append(_attribute_sample(raw, sample, alone, Counter(layout)))
    silent = _find_silent({one.site for one in dense if one.operator == STRETCH or "Conv" in one.operator}, raw)
    for times in (one for passes in found.values() for one in passes):
        for site in silent:
            times.pop(site, None)
    rows = {(site, ""): _row(site, None, found[raw.dense[0].network]) for site in raw.sites}
    for key, passes in found.items():
        for site, values in raw.networks[key].forms.items():
            try:
                form = form_from_dict(values, forms)
            except (FormError, TypeError, ValueError) as error:
                raise LatencyError(f"{site}: its form is damaged ({error}); measure again") from error
            rows.setdefault((site, form.label), _row(site, form, passes))
    return tuple(rows.values())


def _find_silent(known: set[str], raw: Measurements) -> list[str]:
    """Return the sites of which no conv ran, as with a runtime that calls its nodes something else; warn of them.

    Refused where that is all of them. Before onnxruntime 1.20 the convs of int8 had no names.
    """
    sites = [site for site in raw.sites if site not in raw.barred]
    silent = [site for site in sites if site not in known]
    if not silent:
        return []
    version = raw.machine.get("onnxruntime", "?")
    if len(silent) == len(sites):
        raise LatencyError(
            f"no conv was recognised among the nodes of onnxruntime {version} in {raw.precision}; use another version "
            "(int8 needs 1.20)"
        )
    text = (
        f"{', '.join(silent[:3])}: not recognised among the nodes of onnxruntime {version}, so nothing is gained there"
    )
    warnings.warn(text, stacklevel=3)
    return silent


def _row(site: str, form: Form | None, passes: Sequence[Mapping[str, float]]) -> Row:
    times = [one.get(site, 0.0) for one in passes]
    ms = median(times)
    spread = (max(times) - min(times)) / 2 / ms if ms else 0.0
    return Row(site, form, ms, spread)


def _executed(raw: Measurements, sample: Sample) -> list[_Executed]:
    facts = raw.networks[sample.network].nodes
    found = []
    for one in sample.nodes:
        index = _index(one.name, one.operator, facts)
        site, near = (facts[index].site, facts[index].near) if index >= 0 else ("", "")
        found.append(_Executed(index, one.operator, one.ms, site, near))
    return [_place(found, at) if one.index < 0 else one for at, one in enumerate(found)]


def _index(name: str, operator: str, facts: Sequence[NodeFacts]) -> int:
    """Return the number of the node in the file, or -1; what is fused into a conv is the conv."""
    match = _NUMBER.match(name)
    index = int(match[1]) if match is not None else len(facts)
    if index >= len(facts) or (operator in LAYOUT_CHANGES and facts[index].operator != operator):
        return -1
    fused = operator.endswith("Conv") and facts[index].operator not in CONVS and facts[index].conv >= 0
    return facts[index].conv if fused else index


def _place(found: Sequence[_Executed], at: int) -> _Executed:
    """Return an inserted node with the site it stands at: before the one that follows, or after the one before it."""
    one = found[at]
    order = found[at + 1 :] if one.operator == LAYOUT_CHANGES[0] else found[:at][::-1]
    site = next((other.site or other.near for other in order if other.index >= 0), "")
    return _Executed(-1, one.operator, one.ms, near=site)


def _attribute_sample(
    raw: Measurements, sample: Sample, alone: set[tuple[str, str]], layout: Counter[tuple[str, str]]
) -> dict[str, float]:
    """Return the milliseconds of every site in one network and pass.

    `alone` and `layout` are the dense network's nodes that belong to no site, and its layout changes.
    """
    nodes = _executed(raw, sample)
    scale = raw.total_ms / sample.dense_ms
    total_ms = scale * sample.total_ms
    changed = set(raw.networks[sample.network].forms)
    times: dict[str, float] = {}
    for one, ms in zip(nodes, spread_overhead([scale * one.ms for one in nodes], total_ms), strict=True):
        site = _owner(one, changed, alone, layout)
        times[site] = times.get(site, 0.0) + ms
    if abs(sum(times.values()) - total_ms) > _ROUNDING * total_ms:
        label = raw.networks[sample.network].label
        raise LatencyError(
            f"{label}, pass {sample.number}: its nodes take {sum(times.values()):.4g} ms, the whole network "
            f"{total_ms:.4g}; measure again"
        )
    times.pop("", None)
    return times


def spread_overhead(times: Sequence[float], total: float) -> list[float]:
    """Return the times, each changed by the same amount so that they add up to `total`.

    No time falls below a small share of itself; the others then fall further. Where even that is more than `total`,
    the sum stays above it.
    """
    found = np.array(times, dtype=float)
    least = _LEAST * found
    free = np.ones(len(found), dtype=bool)
    made = least
    while free.any():
        each = (total - least[~free].sum() - found[free].sum()) / free.sum()
        short = free & (found + each < least)
        if not short.any():
            made = np.where(free, found + each, least)
            break
        free &= ~short
    return [float(one) for one in made]


def _owner(one: _Executed, changed: set[str], alone: set[tuple[str, str]], layout: Counter[tuple[str, str]]) -> str:
    """Return the site that a node's time belongs to, empty for none; `layout` counts down the dense network's."""
    if one.index < 0:
        layout[one.operator, one.near] -= 1
        return one.near if layout[one.operator, one.near] < 0 and one.near in changed else ""
    new = one.near in changed and (one.near, one.operator) not in alone
    return one.site or (one.near if new else "")
