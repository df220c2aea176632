"""A search that was stopped: the next one of the same network and images goes on from there, and another does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import convsurgeon as cs
from convsurgeon.search import study
from convsurgeon.search.study import Attempt, Study
from tests.search.chain import net
from tests.search.tables import MadeUpTable
from tests.search.test_within import EXAMPLE, FORMS, IMAGES

pytestmark = pytest.mark.filterwarnings("ignore:.*images are few")


class Fits:
    """How often networks were scored, and tried; stops the call in place of a trial, counted from 1."""

    def __init__(self, patch: pytest.MonkeyPatch, stop_at: int = 0) -> None:
        self.scored, self.trials = 0, 0
        fit, score = Study.try_plan, study.score_by_data

        def try_plan(own: Study, plan: cs.Plan, *, final: bool = False, progress: bool = False) -> Attempt:
            self.trials += not final
            if stop_at and self.trials == stop_at:
                raise KeyboardInterrupt
            return fit(own, plan, final=final, progress=progress)

        def score_by_data(*given: object, **more: object) -> object:
            self.scored += 1
            return score(*given, **more)  # type: ignore[arg-type]

        patch.setattr(Study, "try_plan", try_plan)
        patch.setattr(study, "score_by_data", score_by_data)


def _convert(
    cache: Path, images: Tensor = IMAGES, seed: int = 0, goal: cs.Within | cs.Budget | None = None
) -> cs.Result:
    runtime = cs.Runtime(table=MadeUpTable(), cache=cache)
    return cs.convert(
        net(), EXAMPLE, forms=FORMS, policy=cs.select.everything(), calibration=images, progress=False, seed=seed,
        runtime=runtime, goal=goal or cs.Within(0.3),
    )  # fmt: skip


def _stop(cache: Path, at: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        Fits(patch, stop_at=at)
        with pytest.raises(KeyboardInterrupt):
            _convert(cache)


def test_it_goes_on_from_scores_and_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Fits(monkeypatch)
    wanted = _convert(tmp_path / "another")
    assert (whole.scored, whole.trials) == (1, 2)
    _stop(tmp_path, at=2)
    rest = Fits(monkeypatch)
    found = _convert(tmp_path)
    assert (rest.scored, rest.trials) == (0, 1)
    assert found.plan == wanted.plan
    assert [trial.value for trial in found.trials] == pytest.approx([trial.value for trial in wanted.trials], rel=0.01)
    assert not list(tmp_path.glob("search-*"))  # it has come to its end


def test_a_budget_goes_on_from_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _stop(tmp_path, at=1)
    fits = Fits(monkeypatch)
    result = _convert(tmp_path, goal=cs.Budget(latency=0.7))
    assert result.changes
    assert fits.scored == 0


def test_other_images_weights_or_seeds_are_another_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _stop(tmp_path, at=2)
    for images, seed in ((IMAGES + 1e-3, 0), (IMAGES, 1)):
        fits = Fits(monkeypatch)
        _convert(tmp_path, images, seed)
        assert fits.scored == 1
    scaled = net().apply(_scale)
    monkeypatch.setattr("tests.search.test_earlier.net", lambda: scaled)
    fits = Fits(monkeypatch)
    _convert(tmp_path)
    assert fits.scored == 1


def _scale(module: torch.nn.Module) -> None:
    for parameter in module.parameters(recurse=False):
        parameter.data *= 1.01


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"scores": [[1]], "trials": {}}', '{"scores": [], "trials": {"a": 1}}']
)
def test_a_damaged_file_is_done_without(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _stop(tmp_path, at=2)
    (file,) = tmp_path.glob("search-*")
    file.write_text(text)
    fits = Fits(monkeypatch)
    assert _convert(tmp_path).changes
    assert (fits.scored, fits.trials) == (1, 2)


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert _convert(tmp_path / "file" / "cache").changes
