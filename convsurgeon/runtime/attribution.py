"""From what the runtime's profiler said of every node to milliseconds of every site in every form.

The nodes of a site are its own, plus what the form brought in its wake: an addition or activation that the runtime no
longer fuses, and changes of layout, or of the number of bits, that the dense network does not have there. The
profiler takes 1 to 2 microseconds of every node, which is a third of a small network: the difference to the
unprofiled time is spread over the nodes evenly (in the ResNet-20 it is 1.75 microseconds a node whatever the form).
Every pass is scaled by what the dense network took in it, and the median over the passes stands.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from convsurgeon.base.errors import FormError, LatencyError, describe
from convsurgeon.base.precision import Precision
from convsurgeon.forms.catalogue import Kinds, form_from_dict, is_known
from convsurgeon.forms.form import Form
from convsurgeon.onnx.standalone import DENSE, DENSE_OF, Raw
from convsurgeon.onnxnet.session import BLOCKED, LAYOUT_CHANGES
from convsurgeon.runtime.schema import check

_NUMBER = re.compile(r"node-(\d+)")
_LEAST = 0.05
"""Of a profiled time that is left to a node when the profiler's share is taken off."""


@dataclass(frozen=True)
class Row:
    """A site in one form (None: as it is)."""

    site: str
    form: Form | None
    ms: float
    spread: float
    """Half the range over the passes, as a share of `ms`."""
    flags: tuple[str, ...]
    """What the form's graph has there that the dense one has not: `reorder`, `split`, `plain conv`."""


@dataclass(frozen=True)
class Figures:
    """What all passes come to: the rows, the whole networks by label, and the passes that were complete."""

    rows: tuple[Row, ...]
    total_ms: float
    networks: Mapping[str, float]
    passes: int


@dataclass(frozen=True)
class _Seen:
    """One network in one pass: milliseconds and flags by site, and what else took time."""

    times: Mapping[str, float]
    flags: Mapping[str, tuple[str, ...]]
    total_ms: float


def reduce(raw: Raw, forms: Kinds = ()) -> Figures:
    """Reads the results of the measuring script; `forms` are kinds of form beside those that ship.

    Raises:
        LatencyError: They are damaged, or there are none.
    """
    check(raw)
    try:
        return _reduced(raw, forms)
    except (KeyError, TypeError, ValueError, AttributeError, FormError) as error:  # a form's own fields
        raise LatencyError(f"measurements: damaged ({describe(error)}); measure again") from error


def of_precision(raw: Raw, precision: Precision) -> Raw:
    """The results of the networks of one precision, the dense one of which is then called `DENSE`.

    Raises:
        LatencyError: They are damaged.
    """
    dense = DENSE_OF[precision]
    try:
        own = {key: one for key, one in raw["networks"].items() if one.get("precision", "fp32") == precision}
        networks = {DENSE if key == dense else key: one for key, one in own.items()}
        samples = [
            {**one, "network": DENSE if one["network"] == dense else one["network"]}
            for one in raw["samples"]
            if one["network"] in own or one["network"] not in raw["networks"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise LatencyError(f"measurements: damaged ({describe(error)}); measure again") from error
    return {**raw, "networks": networks, "samples": samples, "pruned": raw.get("pruned", [])}


def familiar(raw: Raw, forms: Kinds) -> Raw:
    """The results without those of networks with forms of other kinds, which earlier calls may have left in a cache."""
    try:
        networks = {
            key: network
            for key, network in raw["networks"].items()
            if all(is_known(values, forms) for values in network["forms"].values())
        }
        return {**raw, "networks": networks, "samples": [one for one in raw["samples"] if one["network"] in networks]}
    except (KeyError, TypeError, AttributeError, ValueError):
        return raw  # damaged, as `reduce` will say


def _reduced(raw: Raw, forms: Kinds) -> Figures:
    dense = [sample for sample in raw["samples"] if sample["network"] == DENSE]
    if not dense:
        raise LatencyError("measurements: none yet; run measure.py to its end first")
    total_ms = float(np.median([sample["total_ms"] for sample in dense]))
    base = _baseline(raw, dense[0])
    found: dict[str, list[_Seen]] = {}
    for sample in raw["samples"]:
        found.setdefault(sample["network"], []).append(_seen(raw, sample, base, total_ms))
    rows = [_row(site, None, found[DENSE]) for site in raw["sites"]]
    done: set[tuple[str, str]] = set()
    for key, network in raw["networks"].items():
        for site, values in network["forms"].items() if key in found else ():
            form = form_from_dict(values, forms)
            if (site, form.label) not in done:
                done.add((site, form.label))
                rows.append(_row(site, form, found[key]))
    networks = {raw["networks"][key]["label"]: _median([one.total_ms for one in seen]) for key, seen in found.items()}
    return Figures(tuple(rows), total_ms, networks, len({sample["pass"] for sample in dense}))


def _row(site: str, form: Form | None, seen: Sequence[_Seen]) -> Row:
    times = [one.times.get(site, 0.0) for one in seen]
    ms = _median(times)
    spread = (max(times) - min(times)) / 2 / ms if ms else 0.0
    return Row(site, form, ms, spread, seen[-1].flags.get(site, ()) if form is not None else ())


def _median(values: Sequence[float]) -> float:
    return float(np.median(values))


@dataclass(frozen=True)
class _Baseline:
    """What the dense network executes: nodes that stand alone there, layout changes and plain convs by site."""

    alone: frozenset[tuple[str, str]]
    layout: Counter[tuple[str, str]]
    blocked: frozenset[str]
    """Sites whose conv runs in the blocked layout."""


def _baseline(raw: Raw, sample: Raw) -> _Baseline:
    facts = _executed(raw, sample)
    alone = {(one.near, one.operator) for one in facts if one.index >= 0 and not one.site}
    layout = Counter((one.operator, one.beside) for one in facts if one.index < 0)
    return _Baseline(frozenset(alone), layout, frozenset(one.site for one in facts if one.blocked))


@dataclass(frozen=True)
class _Executed:
    """One executed node, with what the file knows of it; `index` is -1 for a node that the runtime inserted."""

    index: int
    operator: str
    ms: float
    blocked: bool
    site: str
    near: str
    beside: str


def _executed(raw: Raw, sample: Raw) -> list[_Executed]:
    nodes = raw["networks"][sample["network"]]["nodes"]
    found: list[_Executed] = []
    for name, operator, ms in sample["nodes"]:
        index = _index(str(name), str(operator), nodes)
        _, site, near, _ = nodes[index] if index >= 0 else ("", "", "", -1)
        blocked = operator == "Conv" and BLOCKED in name
        found.append(_Executed(index, str(operator), float(ms), blocked, site, near, ""))
    return [_beside(found, place) if one.index < 0 else one for place, one in enumerate(found)]


def _index(name: str, operator: str, nodes: Sequence[Any]) -> int:
    """The number of the node in the file; a conv with what follows it in it is the conv."""
    match = _NUMBER.match(name)
    index = int(match[1]) if match is not None else len(nodes)
    if index >= len(nodes) or (operator in LAYOUT_CHANGES and nodes[index][0] != operator):
        return -1
    fused = operator.endswith("Conv") and nodes[index][0] != "Conv" and nodes[index][3] >= 0
    return int(nodes[index][3]) if fused else index


def _beside(found: Sequence[_Executed], place: int) -> _Executed:
    """An inserted node with the site it stands at: before the one that follows, or behind the one that precedes."""
    one = found[place]
    order = found[place + 1 :] if one.operator == "ReorderInput" else found[:place][::-1]
    site = next((other.site or other.near for other in order if other.index >= 0), "")
    return _Executed(-1, one.operator, one.ms, False, "", "", site)


def _seen(raw: Raw, sample: Raw, base: _Baseline, dense_ms: float) -> _Seen:
    facts = _executed(raw, sample)
    scale = dense_ms / float(sample["dense_ms"])
    each = (float(sample["total_ms"]) - sum(one.ms for one in facts)) / max(1, len(facts))
    changed = set(raw["networks"][sample["network"]]["forms"])
    layout = Counter(base.layout)
    times: dict[str, float] = {}
    flags: dict[str, list[str]] = {}
    for one in facts:
        site, flag = _owner(one, changed, base, layout)
        if site:
            times[site] = times.get(site, 0.0) + scale * max(_LEAST * one.ms, one.ms + each)
            flags.setdefault(site, []).extend([flag] if flag else [])
    told = {site: tuple(dict.fromkeys(words)) for site, words in flags.items()}
    return _Seen(times, told, scale * float(sample["total_ms"]))


def _owner(one: _Executed, changed: set[str], base: _Baseline, layout: Counter[tuple[str, str]]) -> tuple[str, str]:
    """The site that a node's time belongs to, empty for none, and what is remarkable about it."""
    if one.index < 0:
        key = (one.operator, one.beside)
        layout[key] -= 1
        return (one.beside, "reorder") if layout[key] < 0 and one.beside in changed else ("", "")
    if one.site:
        plain = one.operator in ("Conv", "FusedConv") and not one.blocked and one.site in base.blocked
        return one.site, "plain conv" if plain else "split" if one.operator == "Split" else ""
    new = one.near in changed and (one.near, one.operator) not in base.alone
    return (one.near, "split" if one.operator == "Split" else "") if new else ("", "")
