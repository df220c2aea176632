"""Files of measurements from elsewhere: what cannot have been measured is refused, by its place and in one line."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

import convsurgeon as cs
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
    table = cs.LatencyTable.load(tmp_path / "device.json")
    assert table.ms("body", cs.DepthwiseSeparable(rank=1)) == pytest.approx(0.1)
    assert table.total_ms == 1.0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 0, "1.0", None, True, 10**400, [1.0]])
@pytest.mark.parametrize("name", ["total_ms", "dense_ms"])
def test_a_time_that_is_none_is_refused(name: str, value: object, tmp_path: Path) -> None:
    (tmp_path / "device.json").write_text(json.dumps(_with(("samples", 1, name), value)))
    with pytest.raises(
        cs.LatencyError, match=rf"device\.json: measurements: sample 1: {name}: .*measure again"
    ) as told:
        cs.LatencyTable.load(tmp_path / "device.json")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("samples", 0, "nodes", 0, 2), float("nan"), "sample 0: node 0: nan is no time"),
        (("samples", 0, "nodes", 0, 2), -1, "sample 0: node 0: -1 is no time"),
        (("samples", 0, "nodes", 0), [], "sample 0: node 0: expected 3 values, found 0"),
        (("samples", 0, "network"), "x", "sample 0: of a network that is not in the file"),
        (("samples", 0, "pass"), "first", "sample 0: pass: expected a number from 0, found 'first'"),
        (("networks", "dense", "nodes", 1, 3), 99, "network dense: node 1: belongs to node 99, of 3"),
        (("networks", "one", "forms"), {"nobody": {}}, "network one: nobody is none of the sites"),
        (("networks", "one", "forms", "body", "rank"), 0, "rank"),
        (("threads",), 0, "threads: expected a number from 1, found 0"),
        (("machine",), [], r"machine: expected an object, found \[\]"),
        (("pruned",), ["ab"], "pruned 0: expected a list, found 'ab'"),
    ],
)
def test_what_is_of_another_kind_is_named(place: tuple[Any, ...], value: object, message: str, tmp_path: Path) -> None:
    (tmp_path / "device.json").write_text(json.dumps(_with(place, value)))
    with pytest.raises(cs.LatencyError, match=rf"device\.json: measurements: .*{message}"):
        cs.LatencyTable.load(tmp_path / "device.json")


@pytest.mark.parametrize(("name", "value"), [("total_ms", 0), ("threads", 1e400), ("passes", "3"), ("rows", [])])
def test_a_saved_table_is_looked_at_as_well(name: str, value: object, tmp_path: Path) -> None:
    (tmp_path / "device.json").write_text(json.dumps(DEVICE))
    saved = cs.LatencyTable.load(tmp_path / "device.json").to_dict()
    (tmp_path / "table.json").write_text(json.dumps({**saved, name: value if value != [] else saved["rows"][-1:]}))
    with pytest.raises(cs.LatencyError, match=r"table\.json: is damaged .*measure again"):
        cs.LatencyTable.load(tmp_path / "table.json")
