"""What the sweep demands of one model, written down as a row of plain data.

At full rank the forms are exact, so the converted model must compute what the original does, within float32 rounding.
Deep networks amplify rounding, so an error above the bound is judged in float64, where nothing but a mistake is left.
"""

from __future__ import annotations

import copy
import hashlib
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

import convsurgeon as cs
from convsurgeon.graph.capture import Capture
from convsurgeon.graph.outputs import outputs, tensors_in
from convsurgeon.graph.state import undisturbed
from convsurgeon.planning.candidates import plan_captured
from convsurgeon.planning.surgery import operate
from tests.zoo.cases import Case, ready
from tests.zoo.choose import dense

Row = dict[str, Any]
Inputs = tuple[Tensor, ...]

ROUNDING = 1e-4
"""Largest difference over the largest output that counts as float32 rounding."""
EXACT = 1e-9
"""And in float64, for networks that amplify it."""
HEARD = 1e-3
"""Least difference of a rank-1 conversion, without which equal outputs would say nothing."""


def check(case: Case, export: bool) -> Iterator[Row]:
    """Yield the row of a case, again each time more of it is known."""
    row: Row = {"case": case.key, "source": case.source, "family": case.family, "name": case.name}
    start = time.perf_counter()
    model, example = ready(case)
    row |= {"input": [list(tensor.shape) for tensor in example], "fx": _plain_trace(model)}
    row["params"] = sum(parameter.numel() for parameter in model.parameters())
    before = _digest(model)
    seen = cs.capture(model, example)
    row |= _handling(seen) | {"built_s": round(time.perf_counter() - start, 1)}
    plan = full_rank_plan(seen)
    row |= _account(model, plan)
    converted, done = operate(model, plan, example)
    row |= _account(model, done)
    row["error"] = difference(model, converted, example)
    if not row["error"] <= ROUNDING:
        row["error64"] = _in_double(model, plan, example)
    del converted
    row |= _rank_one(model, seen, example)
    row["unchanged"] = _digest(model) == before
    row["status"] = verdict(row)
    row["seconds"] = round(time.perf_counter() - start, 1)
    yield row
    if export and row["status"] == "ok" and row["converted"]:
        yield row | {"export": _export(model, seen, example)}


def verdict(row: Row) -> str:
    """Return `ok`, or what is wrong with a row."""
    if row["unaccounted"]:
        return "a conv is neither changed nor skipped"
    if not (row["error"] <= ROUNDING or row.get("error64", 1.0) <= EXACT):
        return "another output at full rank"
    if not row["unchanged"]:
        return "the input model was changed"
    if row["converted"]:
        for what in ("gradients", "rebuilt"):
            if not row[what]:
                return f"rank 1: no {what}"
        if not row["heard"] > HEARD:
            return "deaf: rank 1 gives the same output"
    return "ok"


def full_rank_plan(seen: Capture) -> cs.Plan:
    """Return a plan with both exact forms in turns, and for wide windows the one with fewer branches."""
    made = [
        plan_captured(seen, [kind(rank=cs.Energy(1.0))], cs.select.everything(), allow_growth=True)
        for kind in (cs.DepthwiseSeparable, cs.Blueprint)
    ]
    steps = []
    for index, pair in enumerate(zip(made[0].steps, made[1].steps, strict=True)):
        ranks = [step.rank if isinstance(step, cs.Change) else 0 for step in pair]
        steps.append(pair[index % 2] if max(ranks) <= 9 else pair[ranks.index(min(ranks))])
    return cs.Plan(tuple(steps), made[0].cost, made[0].example)


def difference(one: nn.Module, two: nn.Module, example: Inputs) -> float:
    """Return the largest difference between two models' outputs, over the largest value of each output tensor."""
    worst = 0.0
    given = cs.Example.of(example)
    for a, b in zip(outputs(one, given), outputs(two, given), strict=True):
        if a.numel():
            scale = float(a.abs().max()) or 1.0
            worst = max(worst, float((a - b).abs().max()) / scale) if bool(a.isfinite().all()) else float("nan")
    return worst


def _in_double(model: nn.Module, plan: cs.Plan, example: Inputs) -> float:
    doubled = copy.deepcopy(model).double()
    return difference(doubled, operate(doubled, plan, _wide(example))[0], _wide(example))


def _wide(example: Inputs) -> Inputs:
    return tuple(tensor.double() for tensor in example)


def _plain_trace(model: nn.Module) -> bool:
    """Return whether torch.fx traces the model as it is."""
    try:
        with undisturbed(model):  # it leaves proxies in the caches of models that keep some
            fx.symbolic_trace(model)
    except Exception:  # whatever user code raises while it is traced
        return False
    return True


def _handling(seen: Capture) -> Row:
    kinds = {"": "traced"} if not seen.opaque else {name: "leaves" if name else "untraced" for name in seen.opaque}
    return {"handled": min(kinds.values(), key=("untraced", "leaves", "traced").index), "opaque": len(seen.opaque)}


def _account(model: nn.Module, plan: cs.Plan) -> Row:
    """Return how many convs there are and were converted, and why the others were not."""
    convs = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, nn.modules.conv._ConvNd)
    }
    told = {name for step in plan.steps for name in step.site.names}
    plain = {step.name for step in plan.steps if type(convs.get(step.name)) is nn.Conv2d and dense(convs[step.name])}
    reasons = Counter(skip.reason for skip in plan.skipped)
    left = Counter(skip.reason for skip in plan.skipped if skip.name in plain)
    return {
        "convs": len(plan.steps),
        "dense": len(plain),
        "converted": len(plan.changes),
        "dense_converted": len(plain & plan.changes.keys()),
        "skipped": dict(reasons.most_common()),
        "dense_left": dict(left.most_common()),
        "unaccounted": sorted(convs.keys() - told),
    }


def _rank_one(model: nn.Module, seen: Capture, example: Inputs) -> Row:
    """Check rank 1 everywhere: it runs, learns, differs, and comes back from its plan and state dict to the bit."""
    forms = [cs.DepthwiseSeparable(rank=1)]
    plan = plan_captured(seen, forms, cs.select.everything(), allow_growth=True)
    converted, done = operate(model, plan, example)
    heard = difference(model, converted, example)
    again = cs.rebuild(model, cs.Plan.from_dict(done.to_dict()))
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.fill_(0.25)
    again.load_state_dict(converted.state_dict())
    same = all(
        torch.equal(one, two)
        for one, two in zip(again.state_dict().values(), converted.state_dict().values(), strict=True)
    )
    del again
    learns = _learns(converted, done, example)
    if not learns:  # random weights may make values that overflow float32
        converted.double().zero_grad()
        learns = _learns(converted, done, _wide(example))
    return {"heard": heard, "rebuilt": same, "gradients": learns}


def _learns(converted: nn.Module, plan: cs.Plan, example: Inputs) -> bool:
    """Return whether every new parameter gets a finite gradient."""
    loss = sum(leaf.square().mean() for leaf in tensors_in(converted(*example)) if leaf.is_floating_point())
    assert isinstance(loss, Tensor)
    loss.backward()
    modules = dict(converted.named_modules(remove_duplicate=False))
    new = [parameter for name in plan.changes for parameter in modules[name].parameters()]
    return all(parameter.grad is not None and bool(parameter.grad.isfinite().all()) for parameter in new)


def _export(model: nn.Module, seen: Capture, example: Inputs) -> str:
    """Return `ok` if the rank-1 model passes the parity check, else the refusal."""
    plan = plan_captured(seen, [cs.DepthwiseSeparable(rank=1)], cs.select.everything(), allow_growth=True)
    converted, _ = operate(model, plan, example)
    with tempfile.TemporaryDirectory() as folder:
        try:
            cs.onnx.export(converted, example, Path(folder) / "model.onnx")
        except cs.ConvSurgeonError as error:
            return f"{type(error).__name__}: {error}"
    return "ok"


def _digest(model: nn.Module) -> str:
    """Return a fingerprint of the structure, the modes and every parameter and buffer."""
    total = hashlib.sha256(str(model).encode())
    total.update(bytes(module.training for module in model.modules()))
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, Tensor):
            flat = tensor.detach().contiguous().view(-1)
            total.update(name.encode() + flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return total.hexdigest()
