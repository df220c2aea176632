"""Files of measurements from elsewhere: what cannot have been measured is refused, by its place and in one line."""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

import convsurgeon as cs
from convsurgeon.runtime.attribution import attribute, spread_overhead
from convsurgeon.runtime.measurements import parse_measurements
from convsurgeon.runtime.table import LatencyTable
from tests.fuzz.files import DEVICE


def _with(place: tuple[Any, ...], value: object) -> dict[str, Any]:
    values: dict[str, Any] = copy.deepcopy(DEVICE)
    node: Any = values
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    return values


def test_what_can_have_been_measured_is_read(tmp_path: Path) -> None:
    (tmp_path / "device.json").write_text(json.dumps(DEVICE))
    table = LatencyTable.load(tmp_path / "device.json")
    assert table.ms("body", cs.DepthwiseSeparable(rank=1)) == pytest.approx(0.1)
    assert table.total_ms == 1.0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 0, "1.0", None, True, 10**400, [1.0]])
@pytest.mark.parametrize("name", ["total_ms", "dense_ms"])
def test_a_time_that_is_none_is_refused(name: str, value: object, tmp_path: Path) -> None:
    (tmp_path / "device.json").write_text(json.dumps(_with(("samples", 1, name), value)))
    with pytest.raises(cs.errors.LatencyError, match=r"device\.json: is damaged") as told:
        LatencyTable.load(tmp_path / "device.json")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("samples", 0, "nodes", 0, 2), -1, r"`\$\.samples\[0\]\.nodes\[0\]\[2\]`"),
        (("samples", 0, "nodes", 0), [], r"`\$\.samples\[0\]\.nodes\[0\]`"),
        (("samples", 0, "network"), "x", "'x'"),
        (("samples", 0, "pass"), "first", r"`\$\.samples\[0\]\.pass`"),
        (("samples", 0, "nodes"), [], "pass 0"),
        (("samples", 0, "nodes", 0, 0), "other", "no conv was recognised"),
        (("networks", "dense", "nodes", 1, 3), 99, "'dense'"),
        (("networks", "one", "forms"), {"nobody": {}}, "'nobody'"),
        (("networks", "one", "forms", "body", "rank"), 0, "body: .*rank"),
        (("threads",), 0, r"`\$\.threads`"),
        (("machine",), [], r"`\$\.machine`"),
        (("convsurgeon_device",), 1, "convsurgeon_device 1"),
    ],
)
def test_what_is_of_another_kind_is_named(place: tuple[Any, ...], value: object, message: str, tmp_path: Path) -> None:
    (tmp_path / "device.json").write_text(json.dumps(_with(place, value)))
    with pytest.raises(cs.errors.LatencyError, match=rf"device\.json: .*{message}"):
        LatencyTable.load(tmp_path / "device.json")


@pytest.mark.parametrize(("name", "recognised"), [("node-1_fused_anew", True), ("fused_7", False)])
def test_nodes_that_the_runtime_renames_are_recognised_or_told(name: str, recognised: bool) -> None:
    raw = copy.deepcopy(DEVICE)
    raw["sites"].append("tail")
    for network in raw["networks"].values():
        network["nodes"][1] = ["Conv", "tail", "tail", -1]
    raw["networks"].pop("one")
    raw["samples"] = raw["samples"][:1]
    raw["samples"][0]["nodes"].insert(1, [name, "Conv", 0.3])
    found = parse_measurements(raw).select("fp32")
    with contextlib.nullcontext() if recognised else pytest.warns(UserWarning, match="tail"):
        rows = {row.site: row.ms for row in attribute(found)}
    assert bool(rows["tail"]) is recognised
    assert rows["body"] > 0


def test_a_site_whose_conv_has_no_name_gains_nothing_by_what_stands_beside_it() -> None:
    """As before onnxruntime 1.20 in int8: its roundings have names of the site, the conv itself has none."""
    raw = copy.deepcopy(DEVICE)
    raw["sites"].append("tail")
    for network in raw["networks"].values():
        network["nodes"][1] = ["Conv", "tail", "tail", -1]
    for sample in raw["samples"]:
        sample["nodes"].insert(1, ["QLinearConv_token_6", "QLinearConv", 0.3])
        sample["nodes"].insert(2, ["node-1_QuantizeLinear", "QuantizeLinear", 0.1])
    with pytest.warns(UserWarning, match="tail"):
        rows = attribute(parse_measurements(raw).select("fp32"))
    assert [row.ms for row in rows if row.site == "tail"] == [0.0]
    assert all(row.ms > 0 for row in rows if row.site == "body")


@pytest.mark.parametrize("operator", ["Conv", "Stretch"])
def test_a_transposed_conv_is_not_what_a_conv_before_it_takes_in(operator: str) -> None:
    raw = copy.deepcopy(DEVICE)
    raw["sites"].append("tail")
    for network in raw["networks"].values():
        network["nodes"][1] = ["ConvTranspose", "tail", "tail", 0]
    for sample in raw["samples"]:
        sample["nodes"] = [["node-0", operator, 0.2], ["node-1", operator, 0.6], ["rest", operator, 0.2]]
        sample["total_ms"] = sample["dense_ms"] = 1.0
    dense = {row.site: row.ms for row in attribute(parse_measurements(raw).select("fp32")) if row.form is None}
    assert dense == pytest.approx({"body": 0.2, "tail": 0.6})


times = st.floats(1e-4, 10.0)


@given(st.lists(times, min_size=1, max_size=30), st.floats(0.06, 20.0))
def test_what_the_profiler_adds_is_taken_off_so_that_times_add_up(nodes: list[float], factor: float) -> None:
    total = factor * sum(nodes)
    found = spread_overhead(nodes, total)
    assert sum(found) == pytest.approx(total)
    assert all(after > 0 for after in found)
    order = sorted(range(len(nodes)), key=lambda place: nodes[place])
    assert all(found[one] <= found[two] * (1 + 1e-9) for one, two in itertools.pairwise(order))


@given(st.lists(times, min_size=3, max_size=3), st.lists(times, min_size=3, max_size=3), st.floats(0.5, 2.0))
def test_sites_and_the_rest_add_up_to_the_whole(dense: list[float], one: list[float], slower: float) -> None:
    """Law 5, whatever the nodes and the whole took; `slower` is the machine in the second sample."""
    raw = copy.deepcopy(DEVICE)
    for sample, ms in zip(raw["samples"], (dense, one), strict=True):
        sample["nodes"] = [[f"node-{place}", "Conv" if place == 0 else "Gemm", t] for place, t in enumerate(ms)]
        sample["total_ms"] = 0.8 * sum(ms)
    raw["samples"][0]["dense_ms"] = raw["samples"][0]["total_ms"]
    raw["samples"][1]["dense_ms"] = slower * raw["samples"][0]["total_ms"]
    found = parse_measurements(raw).select("fp32")
    rows = attribute(found)
    (body,) = (row for row in rows if row.form is None)
    assert 0 < body.ms < found.total_ms == raw["samples"][0]["total_ms"]
    (changed,) = (row for row in rows if row.form is not None)
    assert 0 < changed.ms < raw["samples"][1]["total_ms"] / slower
