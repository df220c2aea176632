"""What `convert` and `recover` give: the new model, and everything that is known of it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from torch import nn

from convsurgeon.base.precision import Precision
from convsurgeon.calibration.dataset import Calibration
from convsurgeon.calibration.images import Images
from convsurgeon.graph.example import Example
from convsurgeon.planning.plan import Change, Plan, Skip
from convsurgeon.report.report import Report
from convsurgeon.runtime.runtime import Runtime
from convsurgeon.search.goal import Within
from convsurgeon.search.trial import Trial


@dataclass(frozen=True)
class Result:
    """A conversion: the new model, what was done to it, and the original it came from.

    Args:
        model: the converted model, of the original's class.
        plan: what became of every conv.
        report: before and after, as tables.
        original: the model as it was handed in.
        example: the inputs it was captured on.
        held_back: calibration images that nothing was fitted to.
        made_up: the images that the weights were fitted to, where they were synthesised.
        runtime: where the network will run.
        within: what its files are judged by; None for the default's error.
        searched: whether the plan was chosen to keep within that, not by hand or by its cost.
        images: how pictures become inputs, where the calibration said it.
        exported: the original as an ONNX graph, where it was timed; `export` writes it and exports nothing twice.
    """

    model: nn.Module
    plan: Plan
    report: Report
    original: nn.Module
    example: Example
    held_back: tuple[Example, ...] = ()
    made_up: Calibration | None = None
    runtime: Runtime = dataclasses.field(default_factory=Runtime)
    within: Within | None = None
    searched: bool = False
    images: Images | None = None
    exported: bytes | None = dataclasses.field(default=None, repr=False)

    def with_metric(self, name: str, before: float, after: float) -> Result:
        """Return the result with one more line in its report."""
        return dataclasses.replace(self, report=self.report.with_metric(name, before, after))

    def judged_by(self, within: Within, known: float | None = None) -> Result:
        """Return the result with a metric in its report, by which `export` judges files, too.

        Args:
            within: with a metric, resolved.
            known: what the metric gives for the converted network, if that was asked.
        """
        assert within.metric is not None
        assert within.before is not None
        if known is None:
            known = within.ask(self.model) if self.changes else within.before
        return dataclasses.replace(self.with_metric(within.name, within.before, known), within=within)

    @property
    def changes(self) -> dict[str, Change]:
        """Name -> form, rank, lost, parameters and MACs before and after."""
        return self.plan.changes

    @property
    def skipped(self) -> tuple[Skip, ...]:
        """Every conv that was left as it was, with the reason."""
        return self.plan.skipped

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Every plan that the search tried: cost, error or metric, milliseconds, and which was taken."""
        return self.report.trials

    @property
    def alternatives(self) -> tuple[Trial, ...]:
        """The plans that the search allows and did not take, the fastest first, then those that lose too much.

        `trial.why` says why; `convert(model, example, forms=trial.plan)` makes its network.
        """
        left = [trial for trial in self.trials if not trial.taken and trial.plan.changes]
        return tuple(sorted(left, key=lambda trial: (not trial.good_enough, -trial.speed_up)))

    @property
    def precision(self) -> Precision:
        """Of the file that it was planned for, which `export` writes."""
        return self.runtime.precision

    def __str__(self) -> str:
        from convsurgeon.report.sentence import lines  # loads onnx

        where = "Every table: result.report. To ship it, which times the file longer: cs.export(result, 'out/')."
        return "\n".join(lines(self.report, where=where))

    def _repr_html_(self) -> str:
        from convsurgeon.report.notebook import to_html
        from convsurgeon.report.sentence import sentence

        return to_html(self.report, sentence(self.report))
