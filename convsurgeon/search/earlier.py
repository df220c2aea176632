"""What a search that was stopped had found out: one of the same network and images goes on from there.

A small file beside the measurements holds the scores, and what every plan on trial lost; no weights. It is gone once a
search has come to its end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from convsurgeon.base.errors import ConvSurgeonError
from convsurgeon.base.files import new_file
from convsurgeon.base.version import version
from convsurgeon.distill.record import Score
from convsurgeon.planning.plan import Change, Plan
from convsurgeon.search.scores import Scores

if TYPE_CHECKING:
    from convsurgeon.calibration.dataset import Calibration
    from convsurgeon.graph.capture import Capture

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Earlier:
    """What is known of an earlier search, and where a later one finds it; without a file nothing is kept."""

    file: Path | None = None
    scores: Scores = field(default_factory=dict)
    trials: dict[str, Score] = field(default_factory=dict)

    @staticmethod
    def read(
        seen: Capture, data: Calibration, options: Mapping[str, Sequence[Change]], settings: str, cache: Path
    ) -> Earlier:
        """Return what a search for the same network, images, candidates and settings has left in a cache folder."""
        versions = [version(), torch.__version__, settings, str(seen.graph.graph)]
        texts = [*versions, *(f"{name} {[change.form.label for change in made]}" for name, made in options.items())]
        tensors = [*seen.model.state_dict().values(), *_images(data)]
        try:
            file = cache / f"search-{_digest(texts, tensors)}.json"
            raw = json.loads(file.read_text("utf-8")) if file.exists() else {"scores": [], "trials": {}}
            scores = {(str(name), str(label)): float(score) for name, label, score in raw["scores"]}
            trials = {str(plan): _score(values) for plan, values in raw["trials"].items()}
        except (OSError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:  # damaged; on meta
            _LOG.info("no earlier search is gone on from: %s", error)
            return Earlier()
        return Earlier(file, scores, trials)

    def of(self, plan: Plan) -> Score | None:
        """Return what a plan lost, if it was tried."""
        return self.trials.get(_name(plan))

    def add(self, plan: Plan, score: Score) -> None:
        """Keep what a plan lost."""
        self.trials[_name(plan)] = score
        self.write()

    def write(self) -> None:
        """Write the file, where there is one; a cache that cannot be written is done without."""
        if self.file is None:
            return
        trials = {plan: dataclasses.asdict(score) for plan, score in self.trials.items()}
        raw = {"scores": [[*key, score] for key, score in self.scores.items()], "trials": trials}
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with new_file(self.file, overwrite=True) as draft:
                draft.write_text(json.dumps(raw), encoding="utf-8")
        except (OSError, ConvSurgeonError) as error:
            _LOG.info("the search is not kept for another call: %s", error)

    def forget(self) -> None:
        """Remove the file: the search has come to its end."""
        if self.file is not None:
            with contextlib.suppress(OSError):
                self.file.unlink()


def _name(plan: Plan) -> str:
    return json.dumps(sorted((name, change.form.label) for name, change in plan.changes.items()))


def _score(values: dict[str, Any]) -> Score:
    low, high = values.pop("doubt")
    return Score(**values, doubt=(float(low), float(high)))


def _images(data: Calibration) -> Iterable[Tensor]:
    for batch in (*data.fitted, *data.held_back):
        yield from batch.tensors()


def _digest(texts: Iterable[str], tensors: Iterable[Tensor]) -> str:
    found = hashlib.sha256()
    for text in texts:
        found.update(text.encode())
    for tensor in tensors:
        found.update(str((tensor.dtype, tuple(tensor.shape))).encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()[:24]
