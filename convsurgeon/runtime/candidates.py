"""Which networks to build for a table of latencies: one per form, with the form at every site that it fits."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from convsurgeon.base.errors import LatencyError
from convsurgeon.base.precision import Precision
from convsurgeon.forms.catalogue import Kinds, form_from_dict
from convsurgeon.forms.form import Form
from convsurgeon.graph.capture import Capture
from convsurgeon.onnx.standalone import DENSE, Raw
from convsurgeon.planning.candidates import kernels_of, settled
from convsurgeon.planning.select import Predicate, resolve
from convsurgeon.runtime.candidate_folder import Candidate


def fitting(
    seen: Capture, forms: Iterable[Form], policy: Predicate | None, precision: Precision = "fp32"
) -> list[Candidate]:
    """One candidate per form, with its settled form at every site that takes it, more MACs or fewer: time decides.

    Forms that share no site, those of k x k and of 1x1 convs, stand in one network: it takes as long to time as either.

    Raises:
        LatencyError: a form that cannot be timed.
        PolicyError: a name in the policy fits no conv.
    """
    chosen, _ = resolve(policy, seen.sites)
    kernels = kernels_of(seen)
    open_sites = [site for site in seen.sites if not site.obstacle and chosen(site)]
    found = []
    for form in forms:
        fits = {}
        for site in open_sites:
            settles = settled(site, kernels[site.name], form, allow_growth=True)
            if not isinstance(settles, str):
                fits[site.name] = settles[0]
        if fits:
            found.append(Candidate(form.label, timeable(fits), precision))
    return _packed(found)


def _packed(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Each joins the first one with which it shares no site."""
    found: list[Candidate] = []
    for one in candidates:
        place = next((at for at, other in enumerate(found) if not other.chosen.keys() & one.chosen.keys()), None)
        if place is None:
            found.append(one)
        else:
            other = found[place]
            both = {**other.chosen, **one.chosen}
            found[place] = dataclasses.replace(other, label=f"{other.label}, {one.label}", chosen=both)
    return found


def distinct(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Those that differ in what they build."""
    return list({one.key: one for one in candidates}.values())


def timeable(forms: Mapping[str, Form]) -> dict[str, Form]:
    """The forms, if all of them are of a kind whose graph is known.

    Raises:
        LatencyError: one is not.
    """
    for name, form in forms.items():
        if not form.plain:
            raise LatencyError(f"{name}: {form.label} cannot be timed; only forms of plain convs can")
    return dict(forms)


def uncovered(
    candidates: Sequence[Candidate], raw: Raw | None, passes: int, prune: bool = False, forms: Kinds = ()
) -> list[Candidate]:
    """What is left to build: candidates with a site whose form was not yet timed in every pass.

    A candidate that was begun keeps its network; of another only the sites that are missing are built. With `prune`
    what was found hopeless before is not missing.
    """
    barred = raw.get("barred", {}) if raw is not None else {}
    begun = raw["networks"] if raw is not None else {}
    done = _timed(raw, passes, forms) if raw is not None else set()
    if raw is not None and prune:
        done |= {(str(site), str(label)) for site, label in raw.get("pruned", [])}
    left: dict[str, Candidate] = {}
    for one in candidates:
        open_ones = {name: form for name, form in one.chosen.items() if name not in barred}
        whole = dataclasses.replace(one, chosen=open_ones)
        missing = {name: form for name, form in whole.chosen.items() if (name, form.label) not in done}
        if missing:
            made = whole if whole.key in begun else dataclasses.replace(one, chosen=missing)
            left[made.key] = made
            done |= {(name, form.label) for name, form in made.chosen.items()}
    return list(left.values())


def _timed(raw: Raw, passes: int, forms: Kinds) -> set[tuple[str, str]]:
    """Sites and forms that were timed in every pass."""
    counts: dict[str, int] = {}
    for sample in raw["samples"]:
        counts[sample["network"]] = counts.get(sample["network"], 0) + 1
    return {
        (site, form_from_dict(values, forms).label)
        for key, network in raw["networks"].items()
        if key != DENSE and counts.get(key, 0) >= passes
        for site, values in network["forms"].items()
    }
