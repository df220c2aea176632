"""A plan is plain data: it prints, saves, loads, and refuses what is damaged."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import convsurgeon as cs
from convsurgeon.forms import svd
from convsurgeon.forms.catalogue import FORMS
from convsurgeon.planning.candidates import candidates, kernels_of, plan_captured
from tests import nets
from tests.layers import convs

X = torch.zeros(2, 3, 12, 12)
PLAN = cs.plan(nets.Shared().eval(), X, forms=[cs.DepthwiseSeparable(rank=2), cs.Blueprint(rank=1)])


def test_a_plan_survives_json(tmp_path: Path) -> None:
    PLAN.save(tmp_path / "plan.json")
    assert cs.Plan.load(tmp_path / "plan.json") == PLAN
    with pytest.raises(cs.WriteError, match=r"plan.json: exists already; pass overwrite=True"):
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


def _damaged(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    values = json.loads(json.dumps(PLAN.to_dict()))
    change(values)
    return values


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.pop("convsurgeon_plan"), "no convsurgeon plan"),
        (lambda v: v.update(convsurgeon_plan=99), "version 99, this convsurgeon reads 1"),
        (lambda v: v.update(layers=3), "layers is not a list"),
        (lambda v: v["cost"].pop("macs"), "cost.macs is missing"),
        (lambda v: v["layers"].append(7), "layer 3: expected an object, found int"),
        (lambda v: v["layers"][1].pop("form"), "layer 1: no field 'form'"),
        (lambda v: v["layers"][1]["form"].update(rank=99), r"layer 1: body: rank 99 exceeds 9"),
        (lambda v: v["layers"][1]["form"].update(form="x"), "unknown form 'x'"),
        (lambda v: v["layers"][1]["geometry"].update(groups=5), "groups do not fit together"),
        (lambda v: v["layers"][1]["geometry"].update(kernel_size=[3]), "kernel_size, stride and dilation do not fit"),
        (lambda v: v["layers"][1].update(params="many"), "expected whole numbers"),
        (lambda v: v["layers"][1].update(name=None), "expected text, found None"),
        (lambda v: v["layers"][1].update(params_after=0), "layer 1: body: params_after 0 and .* do not add up"),
        (lambda v: v["layers"][1].update(macs_after=1), "layer 1: body: .* macs_after 1 do not add up, separable rank"),
        (lambda v: v["layers"][1].update(macs=1), "layer 1: body: .* and macs 1 do not add up, the conv has"),
        (lambda v: v["layers"][1]["calls"].pop(), "layer 1: body: .* do not add up"),
        (lambda v: v["layers"][1]["calls"][0].__setitem__(0, [3]), "layer 1: body: a call's shape has too few dim"),
        (lambda v: v["layers"].append(v["layers"][1]), "layers 1 and 3 are both body"),
        (lambda v: v["layers"][0].update(name="alias"), "layers 0 and 1 are both alias"),
        (lambda v: v["layers"][1].update(share=float("nan")), "layer 1: body: share is nan"),
        (lambda v: v["layers"][1].update(lost=float("inf")), "layer 1: lost is inf"),
        (lambda v: v["cost"].update(macs=5), "the layers have .* MACs, the model 5"),
    ],
)
def test_damaged_plans_are_refused_with_the_place(change: Callable[[dict[str, Any]], object], message: str) -> None:
    with pytest.raises(cs.PlanError, match=message):
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
    except cs.PlanError as error:
        assert "\n" not in str(error)
    else:
        str(plan)
        try:
            cs.rebuild(nets.Shared(), plan)
        except cs.PlanError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is no JSON"), (b"\xff\xfe", "is no JSON"), (b"[]", "expected an object, found list")],
)
def test_files_that_are_no_plans(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(cs.PlanError, match=f"plan.json: .*{message}"):
        cs.Plan.load(path)


def test_a_missing_plan(tmp_path: Path) -> None:
    with pytest.raises(cs.PlanError, match=r"none.json: cannot be read \(No such file"):
        cs.Plan.load(tmp_path / "none.json")
