"""The table of latencies: it adds up, is measured once, reads back, and plans keep what it promises."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

import convsurgeon as cs
from convsurgeon import cli
from convsurgeon.onnxnet.measuring import files, folder
from convsurgeon.runtime.attribution import Row
from convsurgeon.runtime.candidates import (
    Candidate,
    candidates_of,
    find_cheapest,
    leave_out_between,
    leave_out_slow,
    pack,
)
from convsurgeon.runtime.measurements import Measurements
from convsurgeon.runtime.table import LatencyTable
from tests import nets
from tests.distill.test_checkpoint import full_disk

FORMS: list[cs.Form] = [cs.DepthwiseSeparable(rank=1), cs.DepthwiseSeparable(rank=2), cs.Blueprint(rank=1)]
EXAMPLE = torch.zeros(1, 32, 24, 24)
NET = [f"{nets.__file__}:Plain", "--input", "1x3x12x12"]


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
        nn.Conv2d(64, 10, 1),
    ).eval()  # fmt: skip


def _measure(cache: Path, precision: str = "fp32", provider: str = "CPUExecutionProvider", **how: Any) -> LatencyTable:
    runtime = cs.Runtime(precision=precision, provider=provider, cache=cache)  # type: ignore[arg-type]
    table = runtime.measure(cs.capture(_net(), EXAMPLE), FORMS, cs.select.everything(), progress=False, **how)
    assert isinstance(table, LatencyTable)
    return table


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("latencies")


@pytest.fixture(autouse=True, scope="module")
def _the_machine_is_quiet() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder, "busy_share", lambda _threads: 0.0)
        yield


@pytest.fixture(scope="module")
def table(cache: Path) -> LatencyTable:
    return _measure(cache, prune=False)


def test_a_conv_that_gives_the_output_has_its_time(tmp_path: Path) -> None:
    """The runtime names such a node after the output of the graph."""
    model = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)).eval()
    found = cs.Runtime(cache=tmp_path).measure(cs.capture(model, EXAMPLE), FORMS[:1], passes=1, progress=False)
    assert all(found.ms(site, None) > 0.1 * found.total_ms for site in ("0", "1"))


def test_every_site_has_its_time_and_all_add_up(table: LatencyTable) -> None:
    dense = sum(table.ms(site, None) for site in ("0", "3", "5"))
    assert 0 < dense <= table.total_ms * 1.02  # medians of the parts, and the median of the whole
    assert table.rest_ms + dense == pytest.approx(table.total_ms)
    for form in FORMS:
        assert table.has("3", form)
        assert table.ms("3", form) > 0
    assert not table.has("3", cs.Blueprint(rank=5))
    with pytest.raises(cs.errors.LatencyError, match=r"3: blueprint rank 5 is not in the table"):
        table.ms("3", cs.Blueprint(rank=5))
    assert "separable rank 2" in str(table)


def test_slow_networks_are_run_with_the_profiler_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def timed_again(*_: object) -> None:
        raise AssertionError("run again without the profiler")

    monkeypatch.setattr(folder, "SLOW_S", 0.0)
    monkeypatch.setattr(folder, "time_rounds", timed_again)
    found = _measure(tmp_path, passes=1)
    assert found.rest_ms + sum(found.ms(site, None) for site in ("0", "3", "5")) == pytest.approx(found.total_ms)
    assert all(found.ms("3", form) > 0 for form in FORMS[:2])


def test_large_networks_are_timed_by_sessions_that_are_sparing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sparing: list[Any] = []
    honest = folder.Engine.sparing
    monkeypatch.setattr(folder.Engine, "sparing", lambda *given: sparing.append(honest(*given)) or sparing[-1])
    monkeypatch.setattr(folder, "SECONDS", 0.02)
    _measure(tmp_path / "small", passes=1)
    assert not sparing
    monkeypatch.setattr(folder, "_LARGE_BYTES", 0.0)
    found = _measure(tmp_path / "large", passes=1)
    assert sparing
    assert found.rest_ms + sum(found.ms(site, None) for site in ("0", "3", "5")) == pytest.approx(found.total_ms)


def test_networks_that_take_long_are_timed_in_fewer_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "LONG_S", 0.0)
    found = _measure(tmp_path, passes=3)
    assert found.measurements.passes == folder.LONG_PASSES
    monkeypatch.setattr(folder, "measure_folder", lambda *_: pytest.fail("measured again"))
    assert _measure(tmp_path, passes=3).rows == found.rows


def test_what_was_measured_is_not_measured_again(
    table: LatencyTable, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(folder, "measure_folder", measured)
    again = _measure(cache)
    assert again.rows == table.rows


def test_what_is_left_out_is_not_decided_by_what_is_timed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each measurement could let in a form that the one before it had left out, and so could the next call."""
    forms = [cs.DepthwiseSeparable(rank=rank) for rank in (1, 2, 4)]
    decided_by: list[tuple[Row, ...]] = []

    def keep_all(candidates: list[Candidate], rows: tuple[Row, ...], _: object) -> list[Candidate]:
        decided_by.append(rows)
        return candidates

    monkeypatch.setattr("convsurgeon.runtime.cache.BUSY", 2.0)  # a busy machine's figures stay
    monkeypatch.setattr(folder, "SECONDS", 0.02)
    monkeypatch.setattr("convsurgeon.runtime.table.leave_out_slow", keep_all)
    measure = partial(cs.Runtime(cache=tmp_path).measure, cs.capture(_net(), EXAMPLE), forms, progress=False)
    found = measure(passes=2)
    assert all(found.has("3", form) for form in forms)
    monkeypatch.setattr(folder, "measure_folder", lambda *_: pytest.fail("measured again"))
    assert measure(passes=2).rows == found.rows
    assert decided_by[1] == decided_by[0]
    assert {row.form for row in decided_by[0]} == {None, forms[0]}


def test_an_interrupted_measurement_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convsurgeon.runtime.cache.BUSY", 2.0)  # a busy machine's figures stay
    monkeypatch.setattr(folder, "SECONDS", 0.02)
    monkeypatch.setattr(folder, "GROUP", 1)  # results are written network by network
    timed: list[tuple[int, str]] = []
    honest = folder._group

    def group(*args: Any) -> Any:
        if len(timed) == 2:
            raise KeyboardInterrupt
        timed.extend((args[3], name) for name in args[2][1:])
        return honest(*args)

    monkeypatch.setattr(folder, "_group", group)
    with pytest.raises(KeyboardInterrupt):
        _measure(tmp_path, passes=2)
    (stored,) = tmp_path.glob("latency-*.json")
    before = json.loads(stored.read_text())["samples"]
    assert {(one["pass"], one["network"]) for one in before} - {(0, "dense")} == set(timed)

    def rest(*args: Any) -> Any:
        timed.extend((args[3], name) for name in args[2][1:])
        return honest(*args)

    monkeypatch.setattr(folder, "_group", rest)
    table = _measure(tmp_path, passes=2)
    assert len(timed) == len(set(timed)) <= 2 * len(FORMS)  # each network once in each pass, none again
    assert json.loads(stored.read_text())["samples"][: len(before)] == before
    assert all(table.has("3", form) for form in (FORMS[0], FORMS[2]))


def test_forms_that_share_no_site_share_a_network() -> None:
    seen = cs.capture(_net(), EXAMPLE)
    cp, pointwise = [cs.CP(rank=rank) for rank in (16, 32)], [cs.LowRank(rank=rank) for rank in (2, 4, 6)]
    found = pack(candidates_of(seen, [*cp, *pointwise], cs.select.everything()))
    assert [one.label for one in found] == [
        "cp rank 16, lowrank rank 2",
        "cp rank 32, lowrank rank 4",
        "lowrank rank 6",
    ]
    assert [set(one.chosen) for one in found] == [{"0", "3", "5"}, {"0", "3", "5"}, {"5"}]
    timed = {(name, form.label) for one in found for name, form in one.chosen.items()}
    assert timed == {(n, f.label) for n in "03" for f in cp} | {("5", f.label) for f in pointwise}


def test_dear_forms_are_not_timed_where_cheap_ones_hardly_pay() -> None:
    net = nn.Sequential(nn.Conv2d(32, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1))
    sites = {site.name: site for site in cs.capture(net, EXAMPLE).sites}
    ranks = [cs.DepthwiseSeparable(rank=rank) for rank in (1, 2, 4)]
    candidates = [Candidate(form.label, dict.fromkeys(sites, form)) for form in (*ranks[::-1], cs.Blueprint(rank=3))]
    assert [one.label for one in find_cheapest(candidates, sites)] == ["separable rank 1", "blueprint rank 3"]
    rows = [Row("0", None, 1.0, 0.0), Row("1", None, 1.0, 0.0)]
    rows += [Row("0", ranks[0], 0.5, 0.0), Row("1", ranks[0], 0.2, 0.0)]
    left = {one.label: set(one.chosen) for one in leave_out_slow(candidates, rows, sites)}
    # At site 0, 0.7 of four times a half is more than 1; twice is not.
    assert left == {one.label: {"0", "1"} for one in candidates} | {"separable rank 4": {"1"}}
    slow = [*rows, Row("0", ranks[2], 3.0, 0.0)]
    assert leave_out_slow(candidates, slow, sites) == candidates  # what was timed stays


_NOTHING = Measurements(machine={}, threads=1, model="", example="", sites=(), networks={}, samples=())
_WIDE = [cs.CP(rank=rank) for rank in (8, 16, 32, 48, 96)]
_TIMED = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([*_WIDE, *FORMS])), max_size=20)


@settings(max_examples=60)
@given(_TIMED)
def test_packed_networks_have_every_form_at_every_site_and_are_few(pairs: list[tuple[str, cs.Form]]) -> None:
    once = list(dict.fromkeys(pairs))
    found = pack(Candidate(form.label, {site: form}) for site, form in once)
    made = [(site, form) for one in found for site, form in one.chosen.items()]
    assert sorted(made, key=str) == sorted(once, key=str)
    assert len(found) == max(Counter(site for site, _ in once).values(), default=0)


@settings(max_examples=60)
@given(_TIMED)
def test_forms_between_others_are_left_out_and_have_their_time(pairs: list[tuple[str, cs.Form]]) -> None:
    """On a line the table says of them what it would have measured; narrow ones and other kinds are all timed."""
    times = {cs.CP: 0.01, cs.DepthwiseSeparable: 0.02, cs.Blueprint: 0.03}

    def ms(form: cs.Form) -> float:
        return 0.5 + times[type(form)] * form.to_dict()["rank"]

    kept = leave_out_between([Candidate(form.label, {site: form}) for site, form in pairs])
    left = {(site, form) for one in kept for site, form in one.chosen.items()}
    table = LatencyTable(tuple(Row(site, form, ms(form), 0.0) for site, form in left), _NOTHING)
    assert {(site, form) for site, form in pairs if form not in _WIDE[1:]} <= left <= set(pairs)
    for site, form in pairs:
        assert table.ms(site, form) == pytest.approx(ms(form))
    for site in "abc":
        wide = [form.rank for name, form in pairs if name == site and form in _WIDE[1:]]
        assert sum(name == site and form in _WIDE[1:] for name, form in left) <= 3
        assert table.has(site, cs.CP(rank=40)) == (bool(wide) and min(wide) <= 40 <= max(wide))
        assert not table.has(site, cs.CP(rank=12))


def test_of_a_slow_network_fewer_forms_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convsurgeon.runtime.table.SLOW_S", 0.0)
    monkeypatch.setattr("convsurgeon.runtime.candidates.SLACK", 0.0)  # none is left out because it is slow
    monkeypatch.setattr(folder, "SECONDS", 0.02)
    forms = [cs.CP(rank=rank) for rank in (4, 16, 24, 32, 48, 64)]
    found = cs.Runtime(cache=tmp_path).measure(cs.capture(_net(), EXAMPLE), forms, passes=1, progress=False)
    assert isinstance(found, LatencyTable)
    assert all(found.has("3", form) for form in forms)
    timed = {row.form.label for row in found.rows if row.form is not None and row.site == "3"}
    assert timed == {forms[place].label for place in (0, 1, 3, 5)}
    monkeypatch.setattr(folder, "measure_folder", lambda *_: pytest.fail("measured again"))
    again = cs.Runtime(cache=tmp_path).measure(cs.capture(_net(), EXAMPLE), forms, passes=1, progress=False)
    assert again.rows == found.rows


def test_a_planned_network_is_timed_whole_and_adds_up(table: LatencyTable) -> None:
    result = cs.convert(
        _net(), EXAMPLE, forms=FORMS, policy=cs.select.everything(), goal=cs.Budget(latency=0.95),
        runtime=cs.Runtime(table=table), progress=False, calibration=False)  # fmt: skip
    (taken,) = (trial for trial in result.trials if trial.taken)
    assert taken.measured_ms > 0
    assert taken.dense_ms == table.total_ms
    raw = table.measurements
    other = msgspec.structs.replace(raw, machine={**raw.machine, "cpu": "another"})
    elsewhere = dataclasses.replace(table, measurements=other)
    assert elsewhere.time(cs.capture(_net(), EXAMPLE), [result.plan], progress=False) is None
    assert table.time(cs.capture(_net(), EXAMPLE[..., :12]), [result.plan], progress=False) is None


def test_saved_and_loaded(table: LatencyTable, tmp_path: Path) -> None:
    table.save(tmp_path / "table.json")
    assert LatencyTable.load(tmp_path / "table.json") == table
    with pytest.raises(cs.errors.WriteError, match="exists already"):
        table.save(tmp_path / "table.json")


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"convsurgeon_latencies": 1}', '{"convsurgeon_device": 1}', '{"rows": 3}', "null"]
)
def test_what_is_no_table_is_refused_in_one_line(content: str, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(content)
    with pytest.raises(cs.errors.LatencyError, match=r"table\.json: ") as caught:
        LatencyTable.load(path)
    assert "\n" not in str(caught.value)


def test_a_damaged_cache_is_measured_again(table: LatencyTable, cache: Path, tmp_path: Path) -> None:
    del table
    (stored,) = cache.glob("*.json")
    copy = tmp_path / stored.name
    copy.write_text(stored.read_text()[: stored.stat().st_size // 2])
    with pytest.warns(UserWarning, match=stored.name.replace(".", r"\.")):
        _measure(tmp_path, passes=1)
    assert json.loads(copy.read_text())["samples"]


def _refuse(*_: Any, **__: Any) -> Any:
    raise PermissionError(13, "read-only")


def test_a_cache_that_cannot_be_written_is_used(
    table: LatencyTable, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (stored,) = cache.glob("*.json")
    (tmp_path / stored.name).write_bytes(stored.read_bytes())
    monkeypatch.setattr(tempfile, "TemporaryFile", _refuse)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _measure(tmp_path).rows == table.rows
    (tmp_path / stored.name).unlink()
    with pytest.warns(UserWarning, match="cannot be written"):
        _measure(tmp_path, passes=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("now", "kept"), [(0.0, False), (0.9, True)])
def test_what_was_measured_on_a_busy_machine_is_measured_again_on_a_quiet_one(
    now: float, kept: bool, table: LatencyTable, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del table
    (stored,) = cache.glob("*.json")
    values = json.loads(stored.read_text())
    for sample in values["samples"]:
        sample["busy"] = 0.8
        sample["total_ms"] *= 1000
        sample["dense_ms"] *= 1000
    (tmp_path / stored.name).write_text(json.dumps(values))
    monkeypatch.setattr("convsurgeon.runtime.cache.busy_share", lambda _: now)
    assert (_measure(tmp_path, passes=1).total_ms > 50) == kept


def test_a_full_disk_under_the_cache_is_a_line(tmp_path: Path) -> None:
    with (
        full_disk(0),
        pytest.raises(cs.errors.WriteError, match=r"latency-\w+\.json: measurements cannot be kept \(File too l"),
    ):
        _measure(tmp_path)
    assert not list(tmp_path.iterdir())


def test_law_9_holds_of_measured_tables(table: LatencyTable) -> None:
    for limit in (0.95, 0.8):
        result = cs.convert(
            _net(), EXAMPLE, forms=FORMS, policy=cs.select.everything(), goal=cs.Budget(latency=limit),
            runtime=cs.Runtime(table=table), calibration=False)  # fmt: skip
        assert result.changes
        for name, change in result.changes.items():
            assert table.ms(name, change.form) < table.ms(name, None)
        (taken,) = (trial for trial in result.trials if trial.taken)
        assert taken.predicted_ms <= limit * table.total_ms * 1.001


def test_the_folder_for_a_device_runs_by_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "device"
    command = ["device", *NET, "--rank", "1", "--out", str(out)]
    assert cli.main(command) == 0
    assert "measure.py" in capsys.readouterr().out
    assert cli.main(command) == 1
    assert "exists already" in capsys.readouterr().err
    done = subprocess.run(
        [sys.executable, "-I", str(out / "measure.py")], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (found,) = [*out.glob("device.json"), *tmp_path.glob("device.json")]
    loaded = LatencyTable.load(found)
    assert loaded.total_ms > 0
    in_int8 = LatencyTable.load(found, precision="int8")  # one journey for both
    assert (in_int8.precision, {row.site for row in in_int8.rows}) == ("int8", {row.site for row in loaded.rows})
    assert in_int8.has("body", cs.DepthwiseSeparable(rank=1))
    assert in_int8.total_ms != loaded.total_ms
    assert loaded.has("body", cs.DepthwiseSeparable(rank=1))
    planned = ["plan", *NET, "--rank", "1", "--budget", "latency=0.99", "--device", str(found), "--json"]
    assert cli.main(planned) == 0
    layers = json.loads(capsys.readouterr().out)["layers"]
    assert {layer["name"] for layer in layers} == {"stem", "body", "down"}


@pytest.fixture(scope="module")
def in_int8(cache: Path) -> LatencyTable:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder, "SECONDS", 0.2)  # one pass, whose milliseconds are compared
        return _measure(cache, precision="int8", passes=1, prune=False)


def test_a_table_in_int8_is_of_other_networks(
    in_int8: LatencyTable, table: LatencyTable, cache: Path, tmp_path: Path
) -> None:
    dense = sum(in_int8.ms(site, None) for site in ("0", "3", "5"))
    assert 0 < dense <= in_int8.total_ms * 1.001
    assert in_int8.rest_ms + dense == pytest.approx(in_int8.total_ms)
    assert all(in_int8.ms("3", form) > 0 for form in FORMS)
    assert (in_int8.precision, table.precision) == ("int8", "fp32")
    assert len(list(cache.glob("latency-*.json"))) == 2
    in_int8.save(tmp_path / "table.json")
    assert LatencyTable.load(tmp_path / "table.json") == in_int8
    with pytest.raises(cs.errors.LatencyError, match=r"table\.json: has no networks in fp32"):
        LatencyTable.load(tmp_path / "table.json", precision="fp32")
    with pytest.raises(cs.errors.LatencyError, match=r"precision='int4': pass one of fp32, int8"):
        _measure(cache, precision="int4")


def test_a_provider_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(cs.errors.LatencyError, match=r"NoProvider.*CPUExecutionProvider"):
        _measure(tmp_path, provider="NoProvider")


def test_networks_in_int8_run_in_int8_kernels(in_int8: LatencyTable, cache: Path) -> None:
    """And every node of a form is its site's: joined branches, the Concat between them, what is rounded on the way."""
    raws = [json.loads(path.read_text()) for path in cache.glob("latency-*.json")]
    (raw,) = (one for one in raws if files.DENSE_OF["int8"] in one["networks"])
    for sample in raw["samples"]:
        kinds = [operator for _, operator, _ in sample["nodes"]]
        assert "QLinearConv" in kinds
        assert not {"Conv", "FusedConv", "QLinearAdd"} & set(kinds)
    label = FORMS[1].label
    (key,) = (key for key, one in raw["networks"].items() if one["label"] == label)
    (sample,) = (one for one in raw["samples"] if one["network"] == key)
    assert [operator for _, operator, _ in sample["nodes"]].count("QLinearConcat") == 2
    total_ms = in_int8.total_ms * sample["total_ms"] / sample["dense_ms"]
    forms = {site: FORMS[1] if in_int8.has(site, FORMS[1]) else None for site in ("0", "3", "5")}
    rest = total_ms - sum(in_int8.ms(site, form) for site, form in forms.items())
    assert abs(rest - in_int8.rest_ms) < 0.35 * total_ms


def test_a_plan_in_int8_is_timed_in_int8(in_int8: LatencyTable) -> None:
    result = cs.convert(
        _net(), EXAMPLE, forms=FORMS, policy=cs.select.everything(), calibration=False, progress=False,
        runtime=cs.Runtime(table=in_int8, precision="int8"), goal=cs.Budget(latency=0.98))  # fmt: skip
    assert result.precision == "int8"
    for timing in result.trials:
        assert timing.dense_ms == in_int8.total_ms
        assert timing.measured_ms > 0
    for name, change in result.changes.items():
        assert in_int8.ms(name, change.form) < in_int8.ms(name, None)  # law 9, first half
    if result.changes:
        assert " times as fast in int8 as the original in int8" in result.report.speed
