"""Progress where there is no terminal: plain lines, of every stage from its beginning."""

from __future__ import annotations

import pytest

from convsurgeon.base import progress


def test_a_log_has_a_line_when_a_stage_begins_and_later_how_far_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.bar(total=4, desc="fitting", unit="site") as shown:
        for number in range(4):
            now[0] += 3
            shown.set_postfix_str(f"site {number}")
            shown.update()
    assert capsys.readouterr().err.splitlines() == [
        "convsurgeon: fitting, 4 sites",
        "convsurgeon: fitting 2 of 4, 6 s, about 6 s of this left; site 1",
    ]


def test_items_are_counted_and_all_of_them_come(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress.bar("abc", desc="scoring", unit="site")) == ["a", "b", "c"]
    assert capsys.readouterr().err == "convsurgeon: scoring, 3 sites\n"


def test_nothing_is_said_where_none_is_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress.bar([1, 2], desc="scoring", show=False)) == [1, 2]
    progress.say("looking", show=False)
    assert capsys.readouterr().err == ""
