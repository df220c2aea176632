"""The context of one call: a captured network, its candidates and their scores, images, and where it will run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from convsurgeon.base.errors import BudgetError
from convsurgeon.base.files import cache_folder
from convsurgeon.base.progress import say
from convsurgeon.calibration.dataset import Calibration, first_batches
from convsurgeon.distill.loss import OutputJudge
from convsurgeon.distill.reconstruct import Reconstruction, reconstruct
from convsurgeon.distill.record import Score
from convsurgeon.fit import sensitivity
from convsurgeon.fit.known import Known
from convsurgeon.forms.form import Form
from convsurgeon.graph.capture import Capture
from convsurgeon.planning.candidates import candidates, kernels_of, plan_captured
from convsurgeon.planning.plan import Change, Plan
from convsurgeon.planning.select import Predicate, everything
from convsurgeon.planning.surgery import operate
from convsurgeon.runtime.latencies import Latencies, pays, predict
from convsurgeon.runtime.runtime import Runtime
from convsurgeon.search.earlier import Earlier
from convsurgeon.search.scores import EFFORT, Scores, images_for_scores, score_by_data, score_by_weights

NOT_FASTER = "kept dense: no form is clearly faster here"

_KNOWN = 0.25
"""How far a score that a trial has corrected may be off, as a share of how far one may be that was not tried."""


@dataclass(frozen=True)
class Attempt:
    """The network of one plan, fitted.

    Args:
        wanted: the plan that was asked for.
        model: in float.
        plan: as it was carried out.
        fits: what the fit did; None where the plan changes nothing.
        shipped: the network as the file that ships would compute it.
        score: of that one, on held-out images.
    """

    wanted: Plan
    model: nn.Module
    plan: Plan
    fits: Reconstruction | None
    shipped: nn.Module
    score: Score

    @property
    def error(self) -> float:
        """Of the network that ships, on held-out images."""
        return self.score.error


@dataclass(frozen=True)
class Study:
    """What is known while one network is converted; handed down instead of its parts.

    Args:
        seen: the captured network.
        data: images to fit to and to judge by; None where only the weights are known.
        runtime: where the converted network will run.
        base: the plan with the first candidate at every site; its skips stay.
        options: every change that may be made, by site.
        seed: of the positions and projections that are drawn.
        progress: whether to show progress.
        table: milliseconds of every site in every form, where they are known.
        scores: what each change would lose; empty before `score`, corrected by every trial.
        tried: the changes in a network that was tried; filled in by every trial.
        known: what fits found out, from which the next one goes on; filled in by `score` and every fit.
        judge: by held-out images; None where there are no images.
        kept: the best attempt of a search by a metric, fitted as the conversion ends; filled in by the search.
        ends: when the search must come to an end, as `time.monotonic` tells; infinite where it may take its time.
        remarks: what a reader must know about the search, in sentences; filled in by the search.
        earlier: what a search that was stopped had found out; filled in by the search.
    """

    seen: Capture
    data: Calibration | None
    runtime: Runtime
    base: Plan
    options: Mapping[str, Sequence[Change]]
    seed: int = 0
    progress: bool = True
    table: Latencies | None = None
    scores: Scores = field(default_factory=dict)
    tried: set[tuple[str, str]] = field(default_factory=set)
    known: Known = field(default_factory=Known)
    judge: OutputJudge | None = None
    kept: list[Attempt] = field(default_factory=list)
    ends: float = math.inf
    remarks: list[str] = field(default_factory=list)
    earlier: Earlier = field(default_factory=Earlier)

    def with_table(self, table: Latencies) -> Study:
        """Return the study with milliseconds, without the candidates that are not clearly faster than dense."""
        options = {
            name: [change for change in changes if pays(table, name, change.form)]
            for name, changes in self.options.items()
        }
        slow = {name: NOT_FASTER for name, changes in options.items() if not changes}
        left = {name: changes for name, changes in options.items() if changes}
        return dataclasses.replace(self, table=table, base=self.base.without(slow), options=left)

    def with_earlier(self) -> Study:
        """Return the study with what a search for the same, that was stopped, has left in the cache."""
        if self.data is None:
            return self
        settings = f"{self.seed} {self.runtime.precision} {images_for_scores(self.options)}"
        earlier = Earlier.read(self.seen, self.data, self.options, settings, cache_folder(self.runtime.cache))
        if earlier.scores:
            tried = f"{len(earlier.trials)} plan{'' if len(earlier.trials) == 1 else 's'}"
            say(f"going on from a search that was stopped after {tried}", show=self.progress)
        return dataclasses.replace(self, earlier=earlier)

    def score(self) -> Study:
        """Return the study with a score for every candidate: on images where there are any, else from the weights."""
        if self.data is None:
            return dataclasses.replace(self, scores=score_by_weights(self.options))
        if self.earlier.scores:
            return dataclasses.replace(self, scores=dict(self.earlier.scores))
        model, batches = self.seen.model, first_batches(self.data.fitted, images_for_scores(self.options))
        self.known.gradients.update(sensitivity.gradient_moments(model, self.options, batches, self.seed))
        scores = score_by_data(model, self.options, batches, self.known, seed=self.seed, progress=self.progress)
        self.earlier.scores.update(scores)
        self.earlier.write()
        return dataclasses.replace(self, scores=scores)

    def predicted_error(self, plan: Plan) -> float:
        """Return what the scores add up to for a plan: proportional to its error, nearly."""
        return sum(self.scores[change.name, change.form.label] for change in plan.changes.values())

    def learn(self, plan: Plan, error: float) -> None:
        """Correct the scores by the error of a plan's network.

        The first trial tells how scores and errors go together. What a later one has too much or too little is put down
        to the sites that no earlier one changed in this way, as far as they are a good part of the plan.
        """
        made = [(change.name, change.form.label) for change in plan.changes.values()]
        old, new = (sum(self.scores[key] for key in made if (key in self.tried) == known) for known in (True, False))
        if old + new <= 0 or not math.isfinite(error):
            return
        blamed = {name for name, label in made if (name, label) not in self.tried} if self.tried else set(self.options)
        to_new = new**2 / (new**2 + (_KNOWN * old) ** 2)
        apart = error - old - new
        for key, score in self.scores.items():
            if key in self.tried:
                self.scores[key] = score * (max(1 + (1 - to_new) * apart / old, _KNOWN) if key in made else 1)
            elif key[0] in blamed:
                self.scores[key] = score * max(1 + to_new * apart / new, _KNOWN) if new else score
        self.tried.update(made)

    def finish(self, plan: Plan, *, progress: bool = False) -> Attempt:
        """Return a plan's network fitted as the conversion ends, on all images, from the fits that are known."""
        for attempt in self.kept:
            if attempt.wanted is plan:
                return attempt
        return self.try_plan(plan, final=True, progress=progress)

    def try_plan(self, plan: Plan, *, final: bool = False, progress: bool = False) -> Attempt:
        """Return a plan's network and its error on held-out images.

        Args:
            plan: what becomes of every conv.
            final: fit as the conversion ends, on all images and together; otherwise on a part and with fewer steps,
                which is enough to tell plans apart.
            progress: whether to show progress.
        """
        if self.data is None:
            raise BudgetError("search: without images no plan can be tried; pass calibration")
        if not plan.changes:
            return Attempt(plan, self.seen.model, plan, None, *self._as_shipped(self.seen.model, Score(0.0)))
        converted, done = operate(self.seen.model, plan, self.seen.example)
        part = self.data
        if not final:
            images = images_for_scores(self.options)
            part = dataclasses.replace(part, fitted=tuple(first_batches(part.fitted, images)))
        fits = reconstruct(
            self.seen,
            converted,
            done,
            part,
            seed=self.seed,
            progress=progress,
            jointly=final,
            effort=1.0 if final else EFFORT,
            known=self.known,
            judge=self.judge,
        )
        return Attempt(plan, converted, done, fits, *self._as_shipped(converted, fits.score))

    def _as_shipped(self, model: nn.Module, score: Score) -> tuple[nn.Module, Score]:
        """Return the model in the runtime's precision, and its score there."""
        if self.runtime.precision == "fp32":
            return model, score
        assert self.data is not None
        assert self.judge is not None
        shipped = self.runtime.deployed(model, self.data.fitted)
        return shipped, self.judge.score(shipped)

    def predicted_ms(self, plan: Plan) -> float:
        """Return the milliseconds of a plan's network by the table; nan where one of its forms was not measured."""
        return math.nan if self.table is None else predict(self.table, plan)


def open_study(
    seen: Capture,
    data: Calibration | None,
    runtime: Runtime,
    *,
    judge: OutputJudge | None,
    forms: Sequence[Form],
    policy: Predicate | None,
    allow_growth: bool = False,
    seed: int = 0,
    progress: bool = True,
    ends: float = math.inf,
) -> Study:
    """Return a study with every change that the forms could make.

    Args:
        seen: the captured network.
        data: images, or None.
        runtime: where it will run.
        judge: by the held-back images, where there are any.
        forms: candidates for every site.
        policy: which sites may be changed; all by default.
        allow_growth: whether a form may have more MACs or parameters than the conv; milliseconds decide then.
        seed: of what is drawn.
        progress: whether to show progress.
        ends: when the search must come to an end, as `time.monotonic` tells.
    """
    kernels = kernels_of(seen)
    base = plan_captured(seen, forms, everything() if policy is None else policy, allow_growth, kernels)
    options = candidates(base, kernels, forms, allow_growth)
    return Study(seen, data, runtime, base, options, seed, progress, judge=judge, ends=ends)
