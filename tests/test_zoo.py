"""A small part of the zoo, another one every week; `python -m tests.zoo` sweeps all of it."""

from __future__ import annotations

import datetime
import re

import pytest

from tests.networks import import_timm
from tests.zoo.__main__ import ROWS, read
from tests.zoo.cases import Case, timm_cases
from tests.zoo.check import check
from tests.zoo.counters import check_counter
from tests.zoo.page import COUNTERS, PAGE, PEERS, page

ALWAYS = ("levit", "vision_transformer_hybrid")
"""One family that caches tensors while it is traced, and one whose convs standardise their weights."""
SMALL = ("byobnet", "convnext", "efficientnet", "mambaout", "maxxvit", "nfnet", "resnet", "vision_transformer", "dla")


def _this_week() -> list[Case]:
    week = datetime.datetime.now(datetime.UTC).isocalendar().week
    families = (*ALWAYS, SMALL[week % len(SMALL)], SMALL[(week + 1) % len(SMALL)])
    return [case for case in timm_cases() if case.family in families]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", _this_week(), ids=lambda case: case.key)
def test_a_model_of_the_zoo_is_right(case: Case) -> None:
    import_timm()
    (row,) = check(case, export=False)
    assert row["status"] == "ok", row
    assert row["dense_converted"] == row["dense"] > 0 or row["dense_left"]
    counted = check_counter(case, "torch")
    assert counted["status"] == "ok", counted
    assert counted["ours"] > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", timm_cases(), ids=lambda case: case.key)
def test_every_timm_family_is_right(case: Case) -> None:
    import_timm()
    (row,) = check(case, export=False)
    assert row["status"] == "ok", row


def test_the_page_is_what_the_stored_rows_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(read(ROWS), read(PEERS), read(COUNTERS)), "python -m tests.zoo.page"


def test_the_page_counts_what_the_rows_say() -> None:
    shared = {"source": "timm", "family": "f", "handled": "leaves", "fx": False, "convs": 3, "dense": 2}
    good = shared | {"case": "timm:a", "name": "a", "status": "ok", "dense_converted": 1, "error": 2e-4}
    good |= {"error64": 1e-12, "skipped": {"already depthwise": 1}, "dense_left": {}, "export": "ok", "converted": 1}
    bad = {"case": "timm:b", "source": "timm", "family": "g", "name": "b", "status": "crash: exit code -9"}
    text = page(
        [good | {"status": "another output at full rank"}, good, bad],
        [bad | {"peer": "bsconv"}],
        [good | {"peer": "torch"}],
    )
    assert "1 of 2 (50.00 %)" in text
    assert "* timm:b: crash: exit code -9" in text
    assert "2e-04 (1e-12 in float64)" in text
    assert "another output" not in text
    assert re.search(r"\| torch +\| 1 +\| 1 +\| 0 +\|", text)
    assert "* bsconv, 1 times: exit code -9" in text
