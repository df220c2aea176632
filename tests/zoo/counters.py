"""MACs of the zoo as other counters see them: torch's own, fvcore's and torchinfo's, and why they differ where they do.

Products are compared kind by kind: convolutions, matrix products, attention. What a counter adds for norms, pooling
or a bias is left out of the comparison, because nobody agrees on it.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import convsurgeon as cs
from convsurgeon.base.errors import describe
from convsurgeon.graph.capture import Capture
from tests.zoo.cases import Case, ready
from tests.zoo.check import Row

Inputs = tuple[Tensor, ...]

_FVCORE = {
    "conv": ("conv", "_convolution_mode"),
    "matmul": ("linear", "addmm", "matmul", "bmm", "einsum", "mm", "baddbmm"),
    "attention": ("scaled_dot_product_attention",),
}


def count_by_torch(model: nn.Module, example: Inputs, seen: Capture) -> Row:
    """Count everything torch has a formula for; must be equal."""
    theirs = sum(_by_kind(model, example).values())
    return {"ours": seen.cost.macs, "theirs": theirs, "why": "" if theirs == seen.cost.macs else "unexplained"}


def count_by_fvcore(model: nn.Module, example: Inputs, seen: Capture) -> Row:
    """Count the products that fvcore traces; it says itself what it has no formula for."""
    from fvcore.nn import FlopCountAnalysis  # type: ignore[import-not-found]

    counted = FlopCountAnalysis(copy.deepcopy(model), example)
    counted.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    by_operator, blind = counted.by_operator(), counted.unsupported_ops()
    own = _by_kind(model, example)
    theirs = {kind: sum(int(by_operator[key]) for key in keys) for kind, keys in _FVCORE.items()}
    reasons = []
    for kind, macs in own.items():
        names = (*_FVCORE[kind], *(_FVCORE["attention"] if kind == "matmul" else ()))  # which torch may take apart
        missing = [f"aten::{name}" for name in names if blind[f"aten::{name}"]]
        if theirs[kind] == macs:
            continue
        if missing:
            reasons.append(f"has no formula for {', '.join(missing)}")
        elif by_operator["einsum"] and abs(theirs[kind] - macs) < 1e-3 * macs:
            reasons.append("reads einsums off numpy's report, which rounds them")
        else:
            reasons.append(f"unexplained: {kind}")
    return {"ours": seen.cost.macs, "theirs": sum(theirs.values()), "why": "; ".join(reasons)}


def count_by_torchinfo(model: nn.Module, example: Inputs, seen: Capture) -> Row:
    """The convs it sees, less the bias it counts as one MAC an output value."""
    import torchinfo

    with contextlib.redirect_stdout(io.StringIO()):
        found = torchinfo.summary(copy.deepcopy(model), input_data=example, verbose=0, depth=99)
    theirs: Counter[str] = Counter()
    names = {id(module): name for name, module in found.summary_list[0].module.named_modules()}
    for layer in found.summary_list:
        theirs[names.get(id(layer.module), "")] += layer.macs
    ours = reported = 0
    reasons: set[str] = set()
    for site in seen.sites:
        told = sum(theirs[name] for name in site.names)
        biases = sum(torch.Size(call.output_shape).numel() for call in site.calls) if site.geometry.bias else 0
        ours, reported = ours + site.macs, reported + max(0, told - biases)
        if told - biases != site.macs:
            reasons.add(_torchinfo_reason(site, told, biases))
    return {"ours": ours, "theirs": reported, "why": "; ".join(sorted(reasons))}


def _torchinfo_reason(site: cs.Site, told: int, biases: int) -> str:
    if told == 0:
        return "does not see convs whose module is not called"
    if site.geometry.transposed:
        return "counts all taps of a transposed conv at every output pixel"
    if len(site.calls) > 1:
        return "counts a conv that runs several times otherwise"
    return f"unexplained: {site.name} {told - biases} for {site.macs}"


COUNTERS = {"torch": count_by_torch, "fvcore": count_by_fvcore, "torchinfo": count_by_torchinfo}


def check_counter(case: Case, counter: str) -> Row:
    """One row: our MACs and theirs of what both count, and why they differ, if they do."""
    row: Row = {"case": case.key, "source": case.source, "family": case.family, "name": case.name, "peer": counter}
    model, example = ready(case)
    seen = cs.capture(model, example)
    try:
        with torch.no_grad():
            row |= COUNTERS[counter](model, example, seen)
    except Exception as error:  # whatever it raises
        return row | {"status": f"crash: {describe(error)[:140]}"}
    return row | {"status": row["why"] or "ok"}


def _by_kind(model: nn.Module, example: Inputs) -> dict[str, int]:
    """MACs by torch's own counter, without the fused attention of encoders, for which it has no formula."""
    frozen = copy.deepcopy(model).requires_grad_(False)  # or it trips over parameters that are passed on
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False) as counter:
            cs.Example.of(example).run(frozen)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    totals: Counter[str] = Counter()
    found: dict[Any, int] = counter.get_flop_counts()["Global"]
    for operator, flops in found.items():
        name = str(operator)
        kind = "conv" if "conv" in name else "attention" if "attention" in name else "matmul"
        totals[kind] += flops // 2
    return dict(totals)
