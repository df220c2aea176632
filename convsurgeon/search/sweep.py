"""The trade-off: one conversion per budget, all from one appraisal, as a table and a plot, and the knee of the curve.

The knee is where the error turns from growing slowly to growing fast as the cost falls: the point farthest below the
straight line between the two ends, both axes scaled to 1 (Satopaa et al. 2011, "Finding a kneedle in a haystack").
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from torch import nn
from tqdm import tqdm

from convsurgeon.base import processes as world
from convsurgeon.base.errors import BudgetError, CalibrationError, WriteError
from convsurgeon.base.files import new_file
from convsurgeon.base.precision import Precision
from convsurgeon.base.tables import Table, printable
from convsurgeon.calibration.collect import gather
from convsurgeon.forms.catalogue import BUDGET_FORMS
from convsurgeon.forms.form import Form
from convsurgeon.graph.capture import capture
from convsurgeon.graph.model_files import Model
from convsurgeon.planning.plan import Plan
from convsurgeon.planning.select import Predicate
from convsurgeon.runtime.latencies import Latencies
from convsurgeon.search.budget import Budget
from convsurgeon.search.choice import predicted
from convsurgeon.search.milliseconds import check_table, measured_here
from convsurgeon.search.trial import Appraised, best_plan, opened, rate, trial

SHARES = (0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8)

Kind = Literal["macs", "latency"]
"""What the budgets of a sweep are shares of."""


@dataclass(frozen=True)
class Point:
    """One budget: the plan it gave, the network's relative error on held-back images, and the user's own metric.

    `ms` is what a table of latencies predicts, and of the original; empty where no table was given.
    """

    share: float
    plan: Plan
    error: float
    metric: tuple[float, ...]
    ms: tuple[float, ...] = ()


@dataclass(frozen=True)
class Sweep:
    """The trade-off between cost and error; prints itself.

    `unreachable` holds budgets that no choice keeps, `why` what the largest of them would have needed, `notes` what is
    to be known of the images.
    """

    points: tuple[Point, ...]
    unreachable: tuple[float, ...]
    example: str
    kind: Kind = "macs"
    why: str = ""
    notes: tuple[str, ...] = ()

    @property
    def knee(self) -> Point:
        """The point from which on saving more costs much more error; two points or one have none to be seen."""
        ends = sorted(self.points, key=self._cost)
        errors = [math.log(max(point.error, 1e-12)) for point in ends]
        return ends[_farthest([self._cost(point) for point in ends], errors)]

    def _cost(self, point: Point) -> float:
        return point.ms[0] if self.kind == "latency" else float(point.plan.macs_after)

    @property
    def table(self) -> Table:
        """A row per budget."""
        names = (("metric", "number"),) if any(point.metric for point in self.points) else ()
        times = (("ms", "ms"), ("speed_up", "times")) if any(point.ms for point in self.points) else ()
        columns = (("budget", "ratio"), ("macs", "count"), ("macs_ratio", "ratio"), ("params_ratio", "ratio"), *times)
        rows = []
        for point in self.points:
            plan = point.plan
            ratios = (plan.macs_after / plan.cost.macs, plan.params_after / plan.cost.params)
            knee = "knee" if len(self.points) > 2 and point is self.knee else ""
            speeds = (point.ms[0], point.ms[1] / point.ms[0]) if point.ms else ()
            rows.append((point.share, plan.macs_after, *ratios, *speeds, point.error, *point.metric, knee))
        missing = ", ".join(f"{share:g}" for share in self.unreachable)
        title = f"Trade-off for an input of {self.example}, budgets of {self.kind}" + (
            f"; cannot be reached: {missing}" if missing else ""
        )
        title += f"\n{self.why}" if self.why else ""
        return Table(title, (*columns, ("output_error", "number"), *names, ("", "text")), tuple(rows))

    def __str__(self) -> str:
        return "\n\n".join([*(f"note: {printable(note)}" for note in self.notes), self.table.text()])

    def draw(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Draws the trade-off as PNG, SVG or PDF, by the file's ending; needs matplotlib.

        Beside the MACs a second plot shows the milliseconds, where they are known.

        Raises:
            WriteError: the file exists and `overwrite` is false, it cannot be written, or matplotlib is missing.
        """
        check_drawable(path)
        from matplotlib.figure import Figure

        points = sorted(self.points, key=self._cost)
        costs = {"share of the original's MACs": [point.plan.macs_after / point.plan.cost.macs for point in points]}
        if all(point.ms for point in points):
            costs["ms, by the table of latencies"] = [point.ms[0] for point in points]
        figure = Figure(figsize=(6.4 if len(costs) == 1 else 10.0, 3.8), layout="constrained")
        plots = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
        for axes, (name, values) in zip(plots, costs.items(), strict=True):
            self._curve(axes, points, values)
            axes.set_xlabel(name)
        plots[0].set_ylabel("metric" if points[0].metric else "relative output error")
        with new_file(path, overwrite) as temporary:
            figure.savefig(temporary, format=Path(path).suffix.lower().lstrip("."))

    def _curve(self, axes: Any, points: Sequence[Point], costs: Sequence[float]) -> None:
        """One curve of the points over a cost, with the knee marked."""
        values = [point.metric[0] if point.metric else point.error for point in points]
        axes.plot(costs, values, marker="o")
        where = points.index(self.knee)
        if len(points) > 2:
            axes.annotate("knee", (costs[where], values[where]), textcoords="offset points", xytext=(8, 8))
        if not points[0].metric and min(values) > 0:
            axes.set_yscale("log")
        axes.grid(alpha=0.3)


def check_drawable(path: str | os.PathLike[str]) -> None:
    """Makes sure before long work that `Sweep.draw` can draw to a path.

    Raises:
        WriteError: matplotlib is missing, or the file's ending is none it can write.
    """
    if find_spec("matplotlib") is None:
        raise WriteError(f"{path}: drawing needs matplotlib; pip install 'convsurgeon[plot]'")
    if Path(path).suffix.lower() not in (".png", ".svg", ".pdf"):
        raise WriteError(f"{path}: a plot is written as .png, .svg or .pdf; change the ending")


def sweep(
    model: Model,
    example: object = None,
    *,
    calibration: object = None,
    shares: Sequence[float] = SHARES,
    kind: Kind = "macs",
    forms: Sequence[Form] = BUDGET_FORMS,
    policy: Predicate | None = None,
    metric: Callable[[nn.Module], float] | None = None,
    latencies: Latencies | None = None,
    precision: Precision = "fp32",
    allow_growth: bool = False,
    images: int = 1024,
    seed: int = 0,
    progress: bool = True,
) -> Sweep:
    """Converts a model under one budget after the other and weighs what each costs in accuracy.

    The statistics of all layers are gathered once. Each plan is fitted to a part of the images only
    (`rating.looked_at`): the curve shows where to go, `convert` with that budget then does it with all of them.

    Args:
        model: any module that runs on the example, or the path of an ONNX file; it is not changed.
        example: as for `convert`.
        calibration: unlabelled images; made up if not given.
        shares: budgets, as shares of what the original has.
        kind: of what: `"macs"`, or `"latency"`, which is measured on this machine where no `latencies` are given. Plans
            are those of the table; `convert` with that budget also times the whole network.
        forms: candidates for every site.
        policy: which sites may be touched; the default leaves the stem alone.
        metric: a number for a model, for example its accuracy; measured for every point.
        latencies: measured milliseconds of every site in every form, to show beside the MACs; a `LatencyTable`.
        precision: of the files that would ship, whose errors and milliseconds these are: `"fp32"` or `"int8"`.
        allow_growth: take a form even where it has more MACs or parameters than the conv; milliseconds decide that
            where they are the budget.
        images: how many images to use at most.
        seed: of the positions and projections that are drawn from them.
        progress: whether to show bars.

    Raises:
        BudgetError: none of the budgets can be reached, or there is no such kind.
        CalibrationError: the calibration data are empty, of another shape, or not finite.
    """
    if kind not in ("macs", "latency"):
        raise BudgetError(f"sweep: kind={kind!r} is no kind of budget; pass macs or latency")
    seen = capture(model, example)
    data = gather(seen, calibration, seed=seed, progress=progress, limit=images)
    if data is None:
        raise CalibrationError("sweep: without images no plan can be judged; pass calibration, or leave it out")
    if latencies is None and kind == "latency":
        latencies = measured_here(seen, forms, policy, progress, precision)
    check_table(latencies, precision)
    found = opened(seen, forms, policy, allow_growth or kind == "latency")
    found = found if latencies is None or kind == "macs" else found.paying(latencies)
    rated = rate(found, data, seed, progress, precision)
    points: list[Point] = []
    unreachable: list[float] = []
    reason: BudgetError | None = None
    for share in tqdm(sorted(set(shares)), desc="budgets", disable=world.silent(progress)):
        try:
            points.append(_point(rated, _budget(kind, share, precision), share, metric, latencies))
        except BudgetError as error:
            unreachable.append(share)
            reason = error
    if reason is not None and not points:
        raise reason
    return Sweep(tuple(points), tuple(unreachable), str(seen.example), kind, str(reason or ""), data.notes)


def _budget(kind: Kind, share: float, precision: Precision) -> Budget:
    values: dict[str, Any] = {kind: float(share), "precision": precision}
    return Budget(**values)


def _point(
    rated: Appraised,
    budget: Budget,
    share: float,
    metric: Callable[[nn.Module], float] | None,
    latencies: Latencies | None,
) -> Point:
    plan = best_plan(rated, budget, latencies, confirm=False).plan
    converted, error = trial(rated, plan)
    values = () if metric is None else (float(metric(converted)),)
    times = () if latencies is None else (predicted(latencies, plan), latencies.total_ms)
    return Point(share, plan, error, values, times)


def _farthest(x: Sequence[float], y: Sequence[float]) -> int:
    """Index of the point farthest below the chord of a falling curve, both axes scaled to 1; x is sorted."""
    width, height = (x[-1] - x[0]) or 1.0, (y[0] - y[-1]) or 1.0
    below = [1 - (a - x[0]) / width - (b - y[-1]) / height for a, b in zip(x, y, strict=True)]
    return max(range(len(x)), key=lambda index: below[index])
