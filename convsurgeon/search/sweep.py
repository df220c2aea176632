"""The trade-off: one conversion per budget, as a table and a plot, and the knee of the curve.

The knee is where the error turns from growing slowly to growing fast as the cost falls: the point farthest below the
straight line between the two ends, both axes scaled to 1 (Satopaa et al. 2011, "Finding a kneedle in a haystack").
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from convsurgeon.base.errors import BudgetError, CalibrationError, WriteError
from convsurgeon.base.files import new_file
from convsurgeon.base.normal import in_normal_mode
from convsurgeon.base.progress import bar
from convsurgeon.base.tables import Table, printable
from convsurgeon.calibration.collect import gather
from convsurgeon.distill.loss import OutputJudge
from convsurgeon.forms.catalogue import BUDGET_FORMS
from convsurgeon.forms.form import Form
from convsurgeon.graph.model_files import Model
from convsurgeon.planning.layers_as_convs import capture_as_convs
from convsurgeon.planning.plan import Plan
from convsurgeon.planning.select import Predicate
from convsurgeon.runtime.runtime import Runtime
from convsurgeon.runtime.threads import only_free_cores
from convsurgeon.search.goal import Budget
from convsurgeon.search.metric import Metric, measure
from convsurgeon.search.problem import Problem
from convsurgeon.search.study import open_study

SHARES = (0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8)

_Kind = Literal["macs", "latency"]
"""What the budgets of a sweep are shares of."""


@dataclass(frozen=True)
class SweepPoint:
    """One budget of a sweep, as a share of what the original has, and the plan that it gave."""

    share: float
    plan: Plan
    error: float
    """Of the network's outputs on held-out images."""
    metric: float | None = None
    """The user's own measure, if there is one."""
    ms: float = math.nan
    """By the latency table; nan without one."""


@dataclass(frozen=True)
class Sweep:
    """The trade-off between cost and error, one point per budget, the smallest first; prints itself."""

    points: tuple[SweepPoint, ...]
    unreachable: tuple[float, ...]
    """Budgets that no plan meets."""
    example: str
    kind: _Kind = "macs"
    dense_ms: float = math.nan
    """Of the original; nan without a latency table."""
    why: str = ""
    """What the largest unreachable budget would need."""
    notes: tuple[str, ...] = ()
    """What a reader must know of the images."""

    @property
    def knee(self) -> SweepPoint:
        """The point from which on saving more costs much more error; with one or two points it means nothing."""
        ends = sorted(self.points, key=self._cost)
        errors = [math.log(max(point.error, 1e-12)) for point in ends]
        return ends[_farthest([self._cost(point) for point in ends], errors)]

    def _cost(self, point: SweepPoint) -> float:
        return point.ms if self.kind == "latency" else float(point.plan.macs_after)

    @property
    def table(self) -> Table:
        """One row per budget."""
        names = (("metric", "number"),) if any(point.metric is not None for point in self.points) else ()
        timed = math.isfinite(self.dense_ms)
        times = (("ms", "ms"), ("speed_up", "times")) if timed else ()
        columns = (("budget", "ratio"), ("macs", "count"), ("macs_ratio", "ratio"), ("params_ratio", "ratio"), *times)
        rows = []
        for point in self.points:
            plan = point.plan
            ratios = (plan.macs_after / plan.cost.macs, plan.params_after / plan.cost.params)
            knee = "knee" if len(self.points) > 2 and point is self.knee else ""
            speeds = (point.ms, self.dense_ms / point.ms) if timed else ()
            metric = () if point.metric is None else (point.metric,)
            rows.append((point.share, plan.macs_after, *ratios, *speeds, point.error, *metric, knee))
        missing = ", ".join(f"{share:g}" for share in self.unreachable)
        title = f"Trade-off for an input of {self.example}, budgets of {self.kind}"
        title += f"; cannot be reached: {missing}" if missing else ""
        title += f"\n{self.why}" if self.why else ""
        return Table(title, (*columns, ("output_error", "number"), *names, ("", "text")), tuple(rows))

    def __str__(self) -> str:
        return "\n\n".join([*(f"note: {printable(note)}" for note in self.notes), self.table.text()])

    def draw(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Draw the trade-off as PNG, SVG or PDF, by the file's ending; needs matplotlib.

        Beside the MACs a second plot shows the milliseconds, where they are known.

        Raises:
            WriteError: the file exists and `overwrite` is false, it cannot be written, or matplotlib is missing.
        """
        check_drawable(path)
        from matplotlib.figure import Figure

        points = sorted(self.points, key=self._cost)
        costs = {"share of the original's MACs": [point.plan.macs_after / point.plan.cost.macs for point in points]}
        if math.isfinite(self.dense_ms):
            costs["ms, by the latency table"] = [point.ms for point in points]
        figure = Figure(figsize=(6.4 if len(costs) == 1 else 10.0, 3.8), layout="constrained")
        plots = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
        for axes, (name, values) in zip(plots, costs.items(), strict=True):
            self._curve(axes, points, values)
            axes.set_xlabel(name)
        plots[0].set_ylabel("relative output error" if points[0].metric is None else "metric")
        with new_file(path, overwrite) as temporary:
            figure.savefig(temporary, format=Path(path).suffix.lower().lstrip("."))

    def _curve(self, axes: Any, points: Sequence[SweepPoint], costs: Sequence[float]) -> None:
        """Draw one curve of the points over a cost, with the knee marked."""
        values = [point.error if point.metric is None else point.metric for point in points]
        axes.plot(costs, values, marker="o")
        where = points.index(self.knee)
        if len(points) > 2:
            axes.annotate("knee", (costs[where], values[where]), textcoords="offset points", xytext=(8, 8))
        if points[0].metric is None and min(values) > 0:
            axes.set_yscale("log")
        axes.grid(alpha=0.3)


def check_drawable(path: str | os.PathLike[str]) -> None:
    """Make sure before long work that `Sweep.draw` can draw to a path.

    Raises:
        WriteError: matplotlib is missing, or it cannot write files of that ending.
    """
    if find_spec("matplotlib") is None:
        raise WriteError(f"{path}: drawing needs matplotlib; pip install 'convsurgeon[plot]'")
    if Path(path).suffix.lower() not in (".png", ".svg", ".pdf"):
        raise WriteError(f"{path}: a plot is written as .png, .svg or .pdf; change the ending")


@in_normal_mode
@only_free_cores()
def sweep(
    model: Model,
    example: object = None,
    *,
    calibration: object = None,
    shares: Sequence[float] = SHARES,
    kind: _Kind = "macs",
    forms: Sequence[Form] = BUDGET_FORMS,
    policy: Predicate | None = None,
    metric: Metric | None = None,
    runtime: Runtime | None = None,
    progress: bool = True,
) -> Sweep:
    """Convert a model under one budget after the other and weigh what each costs in accuracy.

    Candidates are scored once, and each plan is fitted to a part of the images only: the curve shows where to go,
    `convert` with that budget then does it with all of them.

    Args:
        model: any module that runs on the example, or the path of an ONNX file; it is not changed.
        example: as for `convert`.
        calibration: as for `convert`; images are synthesised if there are none.
        shares: budgets, as shares of what the original has.
        kind: what they are shares of: `"macs"`, or `"latency"`, which is measured here if `runtime` has no table.
        forms: candidates for every site.
        policy: which sites may be changed; the default leaves the stem alone, unless milliseconds decide.
        metric: the user's own measure, model -> number, taken of every point.
        runtime: where the network will run; milliseconds stand beside the MACs where it has a table of them.
        progress: whether to show progress.

    Raises:
        BudgetError: none of the budgets can be reached, or there is no such kind.
        CalibrationError: the calibration images are empty, of another shape, or not finite.
    """
    if kind not in ("macs", "latency"):
        raise BudgetError(f"sweep: kind={kind!r}; pass 'macs' or 'latency'")
    seen = capture_as_convs(model, example)
    data = gather(seen, calibration, seed=0, progress=progress)
    if data is None:
        raise CalibrationError("sweep: without images no plan can be judged; pass calibration, or leave it out")
    runtime = Runtime() if runtime is None else runtime
    judge = OutputJudge(seen.model, data.held_back)
    study = open_study(
        seen, data, runtime, judge=judge, forms=forms, policy=policy, allow_growth=kind == "latency", progress=progress
    )
    if kind == "latency" or runtime.table is not None:
        table = runtime.measure(seen, forms, policy, progress=progress)
        study = study.with_table(table) if kind == "latency" else dataclasses.replace(study, table=table)
    study = study.score()
    points: list[SweepPoint] = []
    missed: list[float] = []
    why = ""
    for share in bar(sorted(set(shares)), desc="budgets", unit="network", show=progress):
        try:
            plan = Problem.of(study, Budget(**{kind: float(share)})).plan
        except BudgetError as error:
            missed.append(share)
            why = str(error)
            continue
        made = study.try_plan(plan)
        value = None if metric is None else measure(metric, made.shipped)
        points.append(SweepPoint(share, plan, made.error, value, study.predicted_ms(plan)))
    if not points:
        raise BudgetError(why)
    dense_ms = math.nan if study.table is None else study.table.total_ms
    return Sweep(tuple(points), tuple(missed), str(seen.example), kind, dense_ms, why, data.notes)


def _farthest(x: Sequence[float], y: Sequence[float]) -> int:
    """Return the index of the point farthest below the chord of a falling curve, both axes scaled to 1; x is sorted."""
    width, height = (x[-1] - x[0]) or 1.0, (y[0] - y[-1]) or 1.0
    below = [1 - (a - x[0]) / width - (b - y[-1]) / height for a, b in zip(x, y, strict=True)]
    return max(range(len(x)), key=lambda index: below[index])
