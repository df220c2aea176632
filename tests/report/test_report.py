"""The report says what was counted, in every format."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Callable

import pytest
import torch

import convsurgeon as cs
from convsurgeon.fit.fidelity import fidelity, sqnr_db
from tests import nets

X = torch.linspace(-1, 1, 2 * 3 * 12 * 12).reshape(2, 3, 12, 12)


@pytest.fixture
def result() -> cs.Result:
    torch.manual_seed(0)
    return cs.convert(nets.Shared().eval(), X, forms=[cs.DepthwiseSeparable(rank=2)], calibration=False)


def test_golden_tables(result: cs.Result, golden: Callable[[str, str], None]) -> None:
    golden("summary.txt", result.report.summary.text() + "\n")
    golden("layers.txt", result.report.layers.text() + "\n")
    golden("learnables.md", result.report.learnables.markdown() + "\n")


def test_columns_add_up(result: cs.Result) -> None:
    """The same totals by another road: the rows of the tables."""
    layers, summary = result.report.layers.records(), {row[""]: row for row in result.report.summary.records()}
    saved = sum(row["macs"] - row["macs_after"] for row in layers if row["macs_after"] is not None)
    assert summary["macs"]["before"] - saved == summary["macs"]["after"]
    assert summary["flops"]["after"] == 2 * summary["macs"]["after"]
    tensors = result.report.learnables.records()
    for side in ("before", "after"):
        assert sum(row["elements"] for row in tensors if row["in"] in ("both", side)) == summary["params"][side]
    assert summary["weight_bytes"]["after"] == 4 * summary["params"]["after"]


def test_json_csv_and_markdown_hold_the_same(result: cs.Result) -> None:
    values = json.loads(result.report.to_json())
    rows = list(csv.DictReader(io.StringIO(result.report.to_csv())))
    assert [row["layer"] for row in rows] == [row["layer"] for row in values["layers"]] == ["stem", "body", "down"]
    markdown = result.report.to_markdown()
    assert all(f"| {row['layer']}" in markdown for row in rows)
    assert "## Parameter tensors" in markdown


def test_a_metric_joins_the_summary(result: cs.Result) -> None:
    assert len(str(result).splitlines()) <= 10
    assert "result.report" in str(result)
    shown = result.with_metric("<b>", 1.0, 2.0)._repr_html_()
    assert "&lt;b&gt; 1 -&gt; 2" in shown
    assert f"{result.report.before.macs:,}" in shown
    assert "<b>" not in shown.replace("<p><b>", "")
    summary = result.with_metric("accuracy", 91.5, 90.0).report.summary.text()
    assert "accuracy" in summary
    assert "91.5" in summary


def test_fidelity_of_equal_and_of_other_outputs() -> None:
    a = torch.tensor([[1.0, 4.0], [9.0, 2.0]])
    same = fidelity([a], [a.clone()])
    assert (same.sqnr_db, same.cosine, same.agreement, same.rows) == (math.inf, pytest.approx(1.0), 1.0, 2)
    other = fidelity([a], [a + torch.tensor([[0.0, 0.0], [0.0, 8.0]])])
    assert other.sqnr_db == pytest.approx(10 * math.log10(102 / 64))
    assert other.agreement == 0.5
    assert fidelity([torch.ones(2, 3, 4)], [torch.ones(2, 3, 4)]).agreement is None
    assert math.isnan(fidelity([a], [a * math.nan]).sqnr_db)
    for broken in (fidelity([a * math.nan], [a * math.nan]), fidelity([a], [a * math.nan])):
        assert math.isnan(broken.sqnr_db)
        assert math.isnan(broken.cosine)
    assert fidelity([a * math.nan], [a * math.nan]).agreement is None
    agreement = fidelity([a], [a * math.nan]).agreement
    assert agreement is not None
    assert math.isnan(agreement)
    assert sqnr_db(0.0, 1.0) == -math.inf


def test_outputs_of_every_nest_are_compared() -> None:
    result = cs.convert(nets.StructuredOutput(), X, forms=[cs.DepthwiseSeparable(rank=1)], calibration=False)
    assert math.isfinite(result.report.fidelity.sqnr_db)


def test_inspect_shows_the_energy_kept(golden: Callable[[str, str], None]) -> None:
    torch.manual_seed(0)
    table = cs.inspect(nets.Shared().eval(), X)
    golden("inspect.txt", table.text() + "\n")
    rows = {row["layer"]: row for row in table.records()}
    assert rows["body"]["separable_1"] < rows["body"]["separable_2"] < rows["body"]["separable_3"] < 1
    kernel = nets.Shared().body.weight.detach().flatten(2)
    torch.manual_seed(0)
    kernel = nets.Shared().body.weight.detach().flatten(2).double()
    first = torch.linalg.svdvals(kernel)[:, 0].square().sum() / kernel.square().sum()
    assert rows["body"]["blueprint_1"] == pytest.approx(float(first))


def test_what_notes_name_is_only_shown(result: cs.Result) -> None:
    names = "layer <b>\x1b[31m|x|"
    report = dataclasses.replace(result.report, notes=(names,), speed=names)
    assert all(line.isprintable() for line in str(report).split("\n"))
    assert str(report).count("layer <b>\\x1b[31m|x|") == 2
    assert report.to_markdown().count(r"layer &lt;b>\x1b\[31m\|x\|") == 2
