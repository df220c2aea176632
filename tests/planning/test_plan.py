"""A plan is plain data: it prints, saves, loads, and refuses what is damaged."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor, nn

import convsurgeon as cs
from convsurgeon.forms import svd
from convsurgeon.forms.catalogue import FORMS
from convsurgeon.planning.candidates import candidates, kernels_of, plan_captured
from convsurgeon.planning.surgery import operate
from tests import nets
from tests.layers import convs

X = torch.zeros(2, 3, 12, 12)
PLAN = cs.plan(nets.Shared().eval(), X, forms=[cs.DepthwiseSeparable(rank=2), cs.Blueprint(rank=1)])


def test_a_plan_survives_json(tmp_path: Path) -> None:
    PLAN.save(tmp_path / "plan.json")
    assert cs.Plan.load(tmp_path / "plan.json") == PLAN
    with pytest.raises(cs.errors.WriteError, match=r"plan.json: exists already; pass overwrite=True"):
        PLAN.save(tmp_path / "plan.json")
    PLAN.save(tmp_path / "plan.json", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_a_plan_prints_every_conv(golden: Callable[[str, str], None]) -> None:
    torch.manual_seed(0)
    made = cs.plan(nets.Shared().eval(), X, forms=[cs.DepthwiseSeparable(rank=2)])
    golden("plan.txt", str(made) + "\n")


@given(convs())
def test_known_spectra_change_nothing(case: tuple[nn.Conv2d, Tensor]) -> None:
    conv, _ = case
    geometry, known = cs.Geometry.of(conv), {}
    for kind in FORMS:
        for rank in (1, 2, cs.Energy(0.8), cs.Energy(1.0)):
            form = kind(rank=rank).settle(geometry, conv.weight, known)
            assert form == kind(rank=rank).settle(geometry, conv.weight)
            if form.check(geometry) is None:
                assert form.lost(geometry, conv.weight, known) == form.lost(geometry, conv.weight)
    assert set(known) == set(FORMS)


def test_forms_of_many_ranks_share_one_spectrum(monkeypatch: pytest.MonkeyPatch) -> None:
    factored = []
    spectrum = svd.spectrum
    monkeypatch.setattr(svd, "spectrum", lambda matrices: factored.append(1) or spectrum(matrices))
    seen = cs.capture(nets.Shared().eval(), X)
    forms = [cs.DepthwiseSeparable(rank=rank) for rank in (1, 2, 3, 4, cs.Energy(0.5))]
    kernels = kernels_of(seen)
    base = plan_captured(seen, forms, cs.select.everything(), allow_growth=True, kernels=kernels)
    options = candidates(base, kernels, forms, allow_growth=True)
    assert all(len(changes) > 1 for changes in options.values())
    assert len(factored) == len(options)


def test_a_plan_edited_by_hand_has_figures_of_its_own(tmp_path: Path) -> None:
    PLAN.save(tmp_path / "plan.json")
    text = (tmp_path / "plan.json").read_text()
    (line,) = (line for line in text.splitlines() if '"body"' in line)
    other = line.replace('"rank": 2', '"rank": 3')
    assert other != line
    (tmp_path / "plan.json").write_text(text.replace(line, other))
    before, after = PLAN.changes["body"], cs.Plan.load(tmp_path / "plan.json").changes["body"]
    assert after.form == cs.DepthwiseSeparable(rank=3)
    assert after.params_after == after.form.params(after.site.geometry) > before.params_after
    assert after.macs_after > before.macs_after
    _, done = operate(nets.Shared().eval(), cs.Plan.load(tmp_path / "plan.json"), X)
    assert 0 < done.changes["body"].lost < 1


NAMES = ["stem", "body", "down"]


@pytest.mark.parametrize(
    ("forms", "becomes"),
    [
        ({"body": cs.CP(rank=4), "*": cs.DepthwiseSeparable(rank=2)}, [None, "cp rank 4", "separable rank 2"]),
        ({"*": cs.CP(rank=4), "alias": cs.Blueprint(rank=9)}, [None, "blueprint rank 9", "cp rank 4"]),
        ({"*": None, "*o*": cs.Blueprint(rank=1), "bo*": cs.CP(rank=4)}, [None, "cp rank 4", "blueprint rank 1"]),
        ({"stem": cs.Blueprint(rank=3)}, ["blueprint rank 3", None, None]),
    ],
)
def test_forms_by_hand_go_where_they_are_sent(forms: dict[str, cs.Form | None], becomes: list[str | None]) -> None:
    made = cs.plan(nets.Shared().eval(), X, forms=forms)
    changes = made.changes
    assert [changes[name].form.label if name in changes else None for name in NAMES] == becomes
    assert all(step.reason for step in made.skipped)


@pytest.mark.parametrize(
    ("forms", "error", "named"),
    [
        ({"bode": cs.CP(rank=4)}, cs.errors.PolicyError, "'bode'; did you mean body"),
        ({"x*": None, "*": cs.CP(rank=4)}, cs.errors.PolicyError, r"'x\*'"),
        ({"body": cs.LowRank(rank=4)}, cs.errors.FormError, "body: 3x3 kernel"),
        ({"body": 4}, cs.errors.FormError, "4 is not a form"),
        ([None], cs.errors.FormError, "None is not a form"),
        ({}, cs.errors.FormError, "forms"),
        (cs.CP(rank=4), cs.errors.FormError, "cp rank 4"),
    ],
)
def test_forms_by_hand_that_cannot_be_taken_are_refused(forms: Any, error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named):
        cs.plan(nets.Shared().eval(), X, forms=forms)


def _damaged(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    values = json.loads(json.dumps(PLAN.to_dict()))
    change(values)
    return values


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.pop("convsurgeon_plan"), "version None"),
        (lambda v: v.update(convsurgeon_plan=1), "version 1"),
        (lambda v: v.update(layers=3), r"\$.layers"),
        (lambda v: v["cost"].pop("macs"), "macs.*cost"),
        (lambda v: v["layers"].append(7), r"\$.layers\[3\]"),
        (lambda v: v["layers"][1]["form"].update(rank=99), r"layers\[1\]: body: rank 99 exceeds 9"),
        (lambda v: v["layers"][1]["form"].update(rank="two"), r"layers\[1\]: body: .*'two'"),
        (lambda v: v["layers"][1]["form"].update(rank={"energy": 0.9}), r"layers\[1\]: body: .*rank"),
        (lambda v: v["layers"][1]["form"].update(form="x"), r"layers\[1\]: body: unknown form 'x'"),
        (lambda v: v["layers"][1]["site"]["geometry"].update(groups=5), r"layers\[1\].*groups.*\$.geometry"),
        (lambda v: v["layers"][1]["site"]["geometry"].update(kernel_size=[3]), r"layers\[1\].*\$.geometry"),
        (lambda v: v["layers"][1]["site"].update(params="many"), r"layers\[1\].*\$.params"),
        (lambda v: v["layers"][1].update(name=None), r"\$.layers\[1\].name"),
        (lambda v: v["layers"][1]["site"]["calls"][0].update(input_shape=[3]), r"layers\[1\]: body"),
        (lambda v: v["layers"].append(v["layers"][1]), r"layers\[1\] and layers\[3\] are both body"),
        (lambda v: v["layers"][0].update(name="alias"), r"layers\[0\] and layers\[1\] are both alias"),
        (lambda v: v["layers"][1]["site"].update(share=float("nan")), "body: share is nan"),
    ],
)
def test_damaged_plans_are_refused_with_the_place(change: Callable[[dict[str, Any]], object], message: str) -> None:
    with pytest.raises(cs.errors.PlanError, match=message):
        cs.Plan.from_dict(_damaged(change))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 99) | st.floats(allow_nan=True) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [path, *(place for key in keys for place in _places(value[key], (*path, key)))]


@given(st.data(), JSON)
def test_no_change_to_a_plan_file_gives_anything_but_a_plan_or_a_plan_error(data: st.DataObject, new: Any) -> None:
    values = json.loads(json.dumps(PLAN.to_dict()))
    place = data.draw(st.sampled_from(_places(values)[1:]))
    target = values
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = copy.deepcopy(new)
    try:
        plan = cs.Plan.from_dict(values)
    except cs.errors.PlanError as error:
        assert "\n" not in str(error)
    else:
        str(plan)
        try:
            cs.rebuild(nets.Shared(), plan)
        except cs.errors.PlanError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is not JSON"), (b"\xff\xfe", "is not JSON"), (b"[]", "Expected `object`, got `array`")],
)
def test_files_that_are_no_plans(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(cs.errors.PlanError, match=f"plan.json: .*{message}") as caught:
        cs.Plan.load(path)
    assert caught.value.__suppress_context__  # one traceback


def test_a_missing_plan(tmp_path: Path) -> None:
    with pytest.raises(cs.errors.PlanError, match=r"none.json: cannot be read \(No such file"):
        cs.Plan.load(tmp_path / "none.json")
