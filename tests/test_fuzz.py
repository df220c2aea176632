"""A slice of the fuzzing that `python -m tests.fuzz` does at length: no traceback, no wrong answer."""

from __future__ import annotations

import os
import random

import pytest
import torch

from tests.fuzz.run import KINDS, one, prepare, run_chunk

SLICE = {"graph": 12, "policy": 400, "plan": 120, "arguments": 40, "weights": 200, "onnx": 40, "network": 12}
SLICE |= {"device": 150, "images": 100, "checkpoint": 8}


@pytest.fixture(scope="module", autouse=True)
def _prepared() -> None:
    threads = torch.get_num_threads()
    prepare(list(SLICE))
    torch.set_num_threads(threads)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("kind", SLICE)
def test_nothing_but_clean_refusals_and_right_answers(kind: str) -> None:
    for number in range(SLICE[kind]):
        one(kind, f"ci:{number}")


def test_a_failure_is_told_with_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(rng: random.Random) -> None:
        if rng.random() < 0.5:
            raise ValueError("wrong answer")

    def crashes(_rng: random.Random) -> None:
        raise SystemExit(3)

    monkeypatch.setitem(KINDS, "fails", (fails, 1))
    monkeypatch.setitem(KINDS, "crashes", (crashes, 1))
    failures, _ = run_chunk("fails", 0, 0, 30)
    assert 1 < len(failures) < 30
    assert all("ValueError: wrong answer" in line for line in failures)
    assert run_chunk("crashes", 0, 5, 1)[0] == ["crashes 0:5: SystemExit: 3"]


def test_a_crashed_interpreter_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(_rng: random.Random) -> None:
        os._exit(9)

    monkeypatch.setitem(KINDS, "dies", (dies, 1))
    assert run_chunk("dies", 2, 7, 3)[0] == ["dies 2:7: the interpreter crashed with exit code 9"]
