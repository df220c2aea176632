from __future__ import annotations

import numpy as np
import pytest

from convsurgeon.base.errors import LatencyError
from convsurgeon.timing.verdict import BLOCKS, TimeSamples, judge

ROUNDS = 20


def times(random: np.random.Generator, scale: float, session: float, noise: float, spikes: float = 0.0) -> TimeSamples:
    """Times with a bias per session, noise per round, and a share of rounds that something interrupted."""
    base = scale * np.exp(
        session * random.standard_normal((BLOCKS, 1)) + noise * random.standard_normal((BLOCKS, ROUNDS))
    )
    return base * np.where(random.random((BLOCKS, ROUNDS)) < spikes, 30, 1)


def words(scale: float, session: float, noise: float, spikes: float = 0.0, trials: int = 40) -> dict[str, int]:
    counts: dict[str, int] = {}
    for seed in range(trials):
        random = np.random.default_rng(seed)
        trio = [times(random, factor, session, noise, spikes) for factor in (1, 1, scale)]
        word = judge(*trio).word
        counts[word] = counts.get(word, 0) + 1
    return counts


@pytest.mark.parametrize(("session", "noise", "spikes"), [(0.003, 0.04, 0.0), (0.003, 0.04, 0.2), (0.02, 0.2, 0.1)])
def test_a_model_against_itself(session: float, noise: float, spikes: float) -> None:
    assert words(1, session, noise, spikes).get("no measurable difference", 0) >= 38


@pytest.mark.parametrize("spikes", [0.0, 0.1])
def test_five_percent_more_work(spikes: float) -> None:
    assert words(1.05, 0.003, 0.04, spikes).get("slower", 0) >= 36
    assert words(1 / 1.05, 0.003, 0.04, spikes).get("faster", 0) >= 36


def test_noise_swallows_a_small_difference() -> None:
    found = words(1.02, 0.02, 0.3)
    assert found.get("no measurable difference", 0) >= 36
    assert found.get("faster", 0) <= 1  # it is slower


def test_sessions_that_differ_are_not_averaged_away() -> None:
    # 3 % between sessions and hardly any noise within: many rounds alone would be sure of a difference.
    assert words(1, 0.03, 0.001).get("no measurable difference", 0) >= 38


def test_the_estimate_and_its_interval() -> None:
    random = np.random.default_rng(0)
    verdict = judge(*(times(random, scale, 0.002, 0.03) for scale in (2, 2, 1)))
    assert 1.7 < verdict.interval[0] < 1.95 < verdict.speedup < 2.05 < verdict.interval[1] < 2.35
    assert 1.0 < verdict.noise < 1.05
    assert verdict.word == "faster"


def test_a_drifting_machine_cancels() -> None:
    random = np.random.default_rng(0)
    drift = np.exp(np.linspace(0, 1, BLOCKS * ROUNDS)).reshape(BLOCKS, ROUNDS)
    verdict = judge(*(drift * times(random, scale, 0.002, 0.02) for scale in (1, 1, 1.1)))
    assert verdict.word == "slower"
    assert abs(verdict.speedup - 1 / 1.1) < 0.02


def test_the_interval_must_clear_the_floor() -> None:
    flat = np.ones((BLOCKS, ROUNDS))
    assert judge(flat, flat, flat * 1.009).word == "no measurable difference"  # sure, but under one percent
    assert judge(flat, flat, flat * 1.02).word == "slower"
    assert (
        judge(flat, flat * 1.05, flat * 1.04).word == "no measurable difference"
    )  # the baseline itself strays further


def test_the_interval_holds_the_truth_where_blocks_differ() -> None:
    def covers(random: np.random.Generator) -> bool:
        low, high = judge(*(times(random, scale, 0.02, 0.01) for scale in (1, 1, 1))).interval
        return low <= 1 <= high

    assert sum(covers(np.random.default_rng(seed)) for seed in range(200)) >= 186  # 0.93; resampling blocks: 0.87


@pytest.mark.parametrize("scale", [1.3, 2, 4])
def test_the_interval_holds_in_a_minute_in_which_all_takes_longer(scale: float) -> None:
    random = np.random.default_rng(0)
    steady = [times(random, one, 0.001, 0.01) for one in (scale, scale, 1)]
    quiet, busy = judge(*steady), judge(*(one + 0.15 for one in steady))
    assert busy.speedup < quiet.speedup * 0.98
    assert quiet.interval[0] <= busy.speedup
    assert busy.interval[1] >= quiet.speedup


def test_refusals() -> None:
    few, enough = np.ones((4, 10)), np.ones((5, 10))
    with pytest.raises(LatencyError, match="a verdict needs 5 blocks"):
        judge(few, few, few)
    with pytest.raises(LatencyError, match="a verdict needs 5 blocks"):
        judge(enough, enough, few)
    with pytest.raises(LatencyError, match="a time that is not positive"):
        judge(enough, enough, enough * 0)
