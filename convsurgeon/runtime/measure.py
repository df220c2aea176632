"""Building networks for timing and timing them, here and now."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn
from weakref import WeakKeyDictionary

from torch import nn
from tqdm import tqdm

from convsurgeon.base import processes as world
from convsurgeon.base.errors import LatencyError, WriteError, reason
from convsurgeon.base.files import scratch
from convsurgeon.base.precision import PRECISIONS, Precision
from convsurgeon.forms.catalogue import Kinds, kinds_of
from convsurgeon.graph.capture import Capture, capture
from convsurgeon.graph.model_files import Model
from convsurgeon.onnx import standalone as measuring
from convsurgeon.onnx.exporter import exported_graph
from convsurgeon.onnx.standalone import DENSE
from convsurgeon.planning.plan import Plan
from convsurgeon.runtime.attribution import familiar, of_precision, reduce
from convsurgeon.runtime.cache import fingerprint
from convsurgeon.runtime.candidate_folder import Candidate, write_folder
from convsurgeon.runtime.candidate_graph import Skeleton, obstacle, skeleton
from convsurgeon.runtime.candidates import distinct, timeable, uncovered
from convsurgeon.runtime.latencies import NetworkTime
from convsurgeon.runtime.prune import cheapest, hopeless, without

_QUIET_S = 2.0
_EXPORTED: WeakKeyDictionary[nn.Module, Skeleton] = WeakKeyDictionary()
"""Captured graph -> its skeleton: a search times several networks of one model, and an export takes seconds."""


def measure_whole(
    model: Model,
    example: object,
    plans: Sequence[Plan],
    *,
    threads: int = 1,
    passes: int = 3,
    precision: Precision = "fp32",
    progress: bool = True,
) -> tuple[float, tuple[float, ...]]:
    """Milliseconds of a network as it is, and once each plan is carried out: for confirming what a table predicts.

    Args:
        model: the dense network.
        example: as for `LatencyTable.measure`.
        plans: what to make of it; the weights do not matter and are not fitted.
        threads: of the runtime.
        passes: sets of fresh sessions.
        precision: in which all of them run, the network as it is among them.
        progress: whether a bar appears when it takes longer than two seconds.

    Raises:
        ExportError: the model has no ONNX form.
        LatencyError: a plan holds a form, or changes a conv, that cannot be timed.
    """
    seen = capture(model, example)
    dense_ms, found = measured_wholes(seen, exported(seen, progress), plans, threads, passes, precision, progress)
    return dense_ms, tuple(whole.total_ms for whole in found)


def exported(seen: Capture, progress: bool) -> Skeleton:
    """The graph that networks are built from, which takes seconds to make.

    Raises:
        ExportError: the model has no ONNX form.
    """
    found = _EXPORTED.get(seen.graph)
    if found is None:
        with _bar(1, "exporting", progress):
            found = _EXPORTED[seen.graph] = skeleton(exported_graph(seen.model, seen.example), seen.sites)
    return found


def measured_wholes(
    seen: Capture,
    bare: Skeleton,
    plans: Sequence[Plan],
    threads: int,
    passes: int,
    precision: Precision,
    progress: bool,
) -> tuple[float, tuple[NetworkTime, ...]]:
    """`measure_whole` for a model that is exported already, with what each changed site takes in each network."""
    made = [
        Candidate(f"plan {number}", timeable({name: change.form for name, change in plan.changes.items()}), precision)
        for number, plan in enumerate(plans)
    ]
    changing = distinct(one for one in made if one.chosen)
    kinds = kinds_of(form for one in changing for form in one.chosen.values())
    with scratch() as folder:
        place = folder / measuring.RESULT
        raw = measured(seen, bare, changing, place, threads, passes, progress, precision, kinds=kinds)
    for name in {name for one in changing for name in one.chosen} & set(raw["barred"]):
        raise LatencyError(f"{name}: cannot be timed in another form: {raw['barred'][name]}; leave it out of the plan")
    found = {DENSE: NetworkTime(reduce(raw, kinds).total_ms, {})} | {
        one.key: _whole(raw, one, kinds) for one in changing
    }
    return found[DENSE].total_ms, tuple(found[one.key if one.chosen else DENSE] for one in made)


def _whole(raw: measuring.Raw, one: Candidate, kinds: Kinds) -> NetworkTime:
    """One network's figures, with nothing but the dense one beside it: a site may be in the same form in another."""
    alone = [sample for sample in raw["samples"] if sample["network"] in (DENSE, one.key)]
    figures = reduce({**raw, "samples": alone}, kinds)
    total_ms = figures.networks[one.label]
    shares = [sample["total_ms"] / sample["dense_ms"] for sample in alone if sample["network"] == one.key]
    spread = (max(shares) - min(shares)) / 2 * figures.total_ms / total_ms
    return NetworkTime(total_ms, {row.site: row.ms for row in figures.rows if row.form is not None}, spread)


def measured(
    seen: Capture,
    bare: Skeleton,
    candidates: Sequence[Candidate],
    target: Path,
    threads: int,
    passes: int,
    progress: bool,
    precision: Precision,
    prune: bool = False,
    kinds: Kinds = (),
) -> measuring.Raw:
    """Builds the networks in a temporary folder and times them; the results go into `target` bit by bit.

    Args:
        seen: the dense network, captured.
        bare: its graph, see `exported`.
        candidates: what to time beside it.
        target: where earlier results are, and all of them go.
        threads: of the runtime.
        passes: sets of fresh sessions.
        progress: whether bars appear.
        precision: of the candidates, and of the dense network beside them.
        prune: leave out what can hardly pay, see `prune`; results say what that was.
        kinds: of forms, beside those that ship; what earlier calls timed of others stays in `target` alone.

    Returns:
        The results of this precision.

    Raises:
        LatencyError: no passes or threads, or a network cannot be run.
    """
    if passes < 1:
        raise LatencyError(f"passes={passes}: pass at least 1")

    def timed(chosen: Sequence[Candidate]) -> measuring.Raw:
        return _timed(seen, bare, chosen, target, threads, passes, precision, progress)

    sites = {site.name: site for site in seen.sites}
    if not prune:
        return of_precision(timed(candidates), precision)
    raw = timed(cheapest(candidates, sites))
    known = familiar(of_precision(raw, precision), kinds)
    out = hopeless(candidates, reduce(known, kinds).rows, sites)
    rest = uncovered(without(candidates, out), known, passes, forms=kinds)
    raw = {**(timed(rest) if rest else raw), "pruned": [*raw.get("pruned", []), *map(list, out)]}
    measuring.write(target, raw)
    return of_precision(raw, precision)


def _timed(
    seen: Capture,
    bare: Skeleton,
    candidates: Sequence[Candidate],
    target: Path,
    threads: int,
    passes: int,
    precision: Precision,
    progress: bool,
) -> measuring.Raw:
    with scratch() as folder, _bar(len(candidates) * passes, "timing", progress) as bar:

        def told(label: str) -> None:
            bar.set_postfix_str(label, refresh=False)
            bar.update()

        try:
            _write(folder, seen, bare, candidates, (precision,))
            return measuring.measure(folder, target, threads, passes, told, measuring.SECONDS, logs=folder)
        except measuring.MeasureError as error:
            raise LatencyError(str(error)) from error
        except OSError as error:
            raise WriteError(
                f"{target}: measurements cannot be kept ({reason(error)}); make room, or pass another cache"
            ) from error


def write_candidates(folder: Path, seen: Capture, candidates: Sequence[Candidate]) -> None:
    """Exports a network and writes it into a folder, dense in every precision and with each candidate's forms.

    Raises:
        ExportError: the model has no ONNX form.
    """
    _write(folder, seen, exported(seen, progress=False), candidates, PRECISIONS)


def _write(
    folder: Path, seen: Capture, bare: Skeleton, candidates: Sequence[Candidate], precisions: Sequence[Precision]
) -> None:
    barred = {site.name: reason for site in seen.sites if (reason := obstacle(bare, site.name))}
    made = {}
    for one in candidates:
        chosen = {name: form for name, form in one.chosen.items() if name not in barred}
        if chosen:
            kept = dataclasses.replace(one, chosen=chosen)
            made[kept.key] = kept
    about = {"network": fingerprint(seen), "model": type(seen.model).__name__, "example": str(seen.example)}
    write_folder(folder, bare, list(made.values()), {**about, "barred": barred}, precisions)


def _bar(total: int, words: str, progress: bool) -> tqdm[NoReturn]:
    """A bar that appears only when the work takes longer than two seconds."""
    return tqdm(total=total, desc=words, unit="network", delay=_QUIET_S, leave=False, disable=world.silent(progress))
