"""Names in tables are a model's own: nothing in them is markup, a formula or an order to a terminal."""

from __future__ import annotations

import csv
import io

import pytest

from convsurgeon.base.tables import Table, in_markdown, printable

HOSTILE = (
    "<script>alert(1)</script>",
    "=cmd|'/C calc'!A0",
    "\x1b[2J\x1b]0;title\x07",
    "[a](javascript:b)",
    "@sum(1)",
    "-1+1",
    "+1",
    "\t=1",
    "a\u202eb",
    "a\nb",
)


def _table() -> Table:
    return Table(
        "names of \x1b[31mothers", (("layer", "text"), ("macs", "count")), tuple((name, -3) for name in HOSTILE)
    )


def test_a_terminal_only_shows_them() -> None:
    lines = _table().text().split("\n")
    assert len(lines) == 3 + len(HOSTILE) + 1  # and what the columns mean
    assert all(line.isprintable() for line in lines)
    assert "\\x1b[2J\\x1b]0;title\\x07" in _table().text()


def test_a_page_only_shows_them() -> None:
    text = _table().markdown()
    assert "<" not in text
    assert "&lt;script>alert(1)&lt;/script>" in text
    assert r"\[a\](javascript:b)" in text
    assert text.split("\n")[0] == r"## names of \x1b\[31mothers"
    rows = text.split("\n")[2:-2]
    assert {row.replace(r"\|", "").count("|") for row in rows} == {3}


def test_a_spreadsheet_computes_none_of_them() -> None:
    rows = list(csv.reader(io.StringIO(_table().csv())))
    assert not [name for name, _ in rows if name.startswith(("=", "+", "-", "@", "\t"))]
    assert {macs for _, macs in rows[1:]} == {"-3"}  # numbers stay numbers


@pytest.mark.parametrize("name", ["layer1.0.conv_1", "0->1 3x3/2", "100.0 %", "Größe"])
def test_what_is_harmless_stays(name: str) -> None:
    assert printable(name) == name
    assert in_markdown(name) == name


def test_a_quotation_is_not_begun() -> None:
    assert in_markdown("> quoted") == "&gt; quoted"
