"""Data-aware weights: each site fitted to the original's output, with inputs from the already converted network.

Original and converted graph run in lockstep over the calibration batches, once. At a changed site the original's output
is known and so is what the converted network will feed it; random positions of both make a least-squares problem (see
`site`) whose solution the converted network goes on with, so later sites repair what earlier ones lost.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from tqdm import tqdm

from convsurgeon.base import processes as world
from convsurgeon.calibration.dataset import Calibration, images_in
from convsurgeon.fit import sensitivity
from convsurgeon.fit.lockstep import Runner, root_like, walk
from convsurgeon.fit.samples import Samples, at, patches, positions, positions_per_image, relative
from convsurgeon.fit.site import Behind, Fitted, fit_site, site_error
from convsurgeon.forms.form import Form
from convsurgeon.graph.capture import Capture
from convsurgeon.graph.neighbours import Neighbours, alone, callers, neighbours
from convsurgeon.graph.state import evaluating, undisturbed
from convsurgeon.graph.trace import UNTRACED
from convsurgeon.planning.plan import Change, Plan

JUDGED = 10
"""Every tenth sample of a site is not fitted to but judges the fit."""


@dataclass(frozen=True)
class SiteFit:
    """Relative output error of a site behind its batch norm and ReLU, on samples it was not fitted to.

    In the metric of the fit: errors count by what they do to the network's output.
    """

    name: str
    before: float
    after: float
    positions: int
    kept: bool


def fit_in_order(
    seen: Capture,
    converted: nn.Module,
    plan: Plan,
    data: Calibration,
    seed: int,
    progress: bool,
    metrics: Mapping[str, Tensor] | None = None,
    effort: float = 1.0,
) -> list[SiteFit]:
    """Fits the changed sites of a converted model in place, in the order in which they run.

    Args:
        seen: capture of the original.
        converted: what `operate` made of it; its weights are changed.
        plan: as it was carried out.
        data: calibration batches; under `torch.distributed` every process uses its share of them.
        seed: of the positions that are drawn.
        progress: whether to show a bar over the sites.
        metrics: of every site (see `sensitivity`), where they are known already.
        effort: the share of the usual steps that a site's fit may take.
    """
    with undisturbed(seen.model), evaluating(converted):
        job = Job(seen, converted, plan, data, seed, metrics, effort)
        with tqdm(total=len(plan.changes), desc="fitting", unit="site", disable=world.silent(progress)) as bar:
            found = []
            for done in job.run():
                found.append(done)
                bar.update()
                bar.set_postfix_str(f"{done.name} error {done.before:.3f} -> {done.after:.3f}")
    world.agree(converted)
    return found


@dataclass(frozen=True)
class Rows:
    """Samples of a site: patches, targets and what else belongs to them; most are fitted to, the others judge."""

    fitted: tuple[Tensor, ...]
    judged: tuple[Tensor, ...]

    @staticmethod
    def of(batches: Sequence[tuple[Tensor, ...]]) -> Rows:
        """The rows of all batches, each of which ends with those that are set aside (see `judged_last`)."""
        sides: list[list[tuple[Tensor, ...]]] = [[], []]
        for rows in batches:
            kept = len(rows[0]) - _set_aside(len(rows[0]))
            sides[0].append(tuple(values[:kept] for values in rows))
            sides[1].append(tuple(values[kept:] for values in rows))
        return Rows(*(tuple(_joined(values) for values in zip(*side, strict=True)) for side in sides))

    def after(self, earlier: Rows | None) -> Rows:
        """With the rows of earlier calls before them."""
        if earlier is None:
            return self
        pairs = ((earlier.fitted, self.fitted), (earlier.judged, self.judged))
        return Rows(*(tuple(torch.cat(values) for values in zip(one, two, strict=True)) for one, two in pairs))


def judged_last(where: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Positions with every `JUDGED`-th at their end, so that setting those rows aside copies nothing."""
    aside = torch.arange(len(where[0])) % JUDGED == 0
    order = aside.to(torch.uint8).argsort(stable=True)
    image, row, column = (values[order] for values in where)
    return image, row, column


def _set_aside(rows: int) -> int:
    return -(-rows // JUDGED)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """One tensor; a single one is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


class Job:
    """One run in lockstep."""

    def __init__(
        self,
        seen: Capture,
        converted: nn.Module,
        plan: Plan,
        data: Calibration,
        seed: int,
        metrics: Mapping[str, Tensor] | None = None,
        effort: float = 1.0,
    ) -> None:
        share = data.fitted[world.rank() :: world.size()]
        self.images = data.images
        self.graph = seen.graph.graph
        self.original, self.converted = seen.model, converted
        self.root = seen.graph
        fits = [change for change in plan.changes.values() if change.form.fittable]
        self.changes = {name: change for change in fits for name in change.site.names}
        spill = _too_large(seen, share)
        self.runners = (
            Runner(seen.graph, seen.graph, share, spill),
            Runner(root_like(seen, converted), seen.graph, share, spill),
        )
        self.calls = callers(self.graph, seen.graph)
        self.seed, self.effort = seed, effort
        names = [change.name for change in fits]
        self.metrics = sensitivity.metrics(seen.model, names, data.fitted, seed) if metrics is None else metrics
        self.opaque = {path or UNTRACED for path in seen.opaque} | ({""} if "" in seen.opaque else set())
        self.earlier: dict[str, Rows] = {}

    def run(self) -> Iterator[SiteFit]:
        """Yields every site as it is fitted; one that is called again is fitted again, to all its calls so far."""
        for index, node in enumerate(walk(self.graph, self.runners)):
            if node.op != "call_module":
                continue
            change = self.changes.get(str(node.target))
            if change is not None:
                yield from self._fit_call(node, change, index)
            elif str(node.target) in self.opaque:
                yield from self._fit_inside(node, index)

    def _fit_call(self, node: fx.Node, change: Change, index: int) -> Iterator[SiteFit]:
        conv = self._conv(change)
        around = neighbours(node, self.root, conv, self.calls)
        if len(change.site.calls) > 1:  # what follows differs from call to call
            around = alone(conv)
        leader, follower = self.runners
        source = node.args[0] if node.args else node.kwargs["input"]
        assert isinstance(source, fx.Node)
        shortcut = [around.shortcut] if around.shortcut is not None and leader.holds(around.shortcut) else []
        sides = [runner.of(other) for other in shortcut for runner in (leader, follower)]
        rows = self._rows(conv, self.inputs(source), leader.of(node), sides, index)
        yield self._fit(change, conv, around, rows)

    def inputs(self, source: fx.Node) -> Sequence[Tensor]:
        """What a site is fitted on: the converted network's values, so that it repairs what earlier sites lost."""
        values: Sequence[Tensor] = self.runners[1].of(source)
        return values

    def _fit_inside(self, node: fx.Node, index: int) -> Iterator[SiteFit]:
        """The sites of a region that could not be traced, one run of the region for each."""
        leader, follower = self.runners
        region = "" if "" in self.opaque else f"{node.target}."
        names = {name: change for name, change in self.changes.items() if name.startswith(region)}
        modules = {self.original.get_submodule(name): change for name, change in names.items()}
        order = dict.fromkeys(seen for seen, _ in leader.watched(node, list(modules), 0))
        for step, conv in enumerate(order):
            change = modules[conv]
            assert isinstance(conv, nn.Conv2d)
            inner = self.converted.get_submodule(change.name)
            targets, sources = [], []
            for number in range(len(leader.environments)):
                wanted = leader.watched(node, [conv], number)
                given = follower.watched(node, [inner], number)
                targets.append(torch.cat([out for _, (_, out) in wanted]))
                sources.append(torch.cat([x for _, (x, _) in given]))
            rows = self._rows(conv, sources, targets, [], index + step * 7919)
            yield self._fit(change, conv, alone(conv), rows)

    def _conv(self, change: Change) -> nn.Conv2d:
        conv = self.original.get_submodule(change.name)
        assert isinstance(conv, nn.Conv2d)
        return conv

    def _rows(
        self, conv: nn.Conv2d, sources: Sequence[Tensor], targets: Sequence[Tensor], sides: Sequence[Any], index: int
    ) -> Rows:
        """Patches of the converted network, outputs of the original, and `sides`, at random positions."""
        parts: list[tuple[Tensor, ...]] = []
        count = positions_per_image(self.images, conv.weight[0].numel() * conv.groups)
        for number, (x, y) in enumerate(zip(sources, targets, strict=True)):
            batch = world.rank() + number * world.size()
            where = judged_last(positions(y.shape, count, _generator(self.seed, index, batch)))
            parts.append((patches(x, conv, where), at(y, where), *(at(side[number], where) for side in sides)))
        return Rows.of(parts)

    def _fit(self, change: Change, conv: nn.Conv2d, around: Neighbours, rows: Rows) -> SiteFit:
        if len(change.site.calls) > 1:
            rows = rows.after(self.earlier.get(change.name))
            self.earlier[change.name] = rows
        module, form = self.converted.get_submodule(change.name), change.form
        fitted_to, judged = (_problem(part, conv, around) for part in (rows.fitted, rows.judged))
        total = len(rows.fitted[0]) + len(rows.judged[0])
        metric = self.metrics[change.name]
        try:
            fitted = fit_site(form, conv, *fitted_to, metric, self.effort)
        except FloatingPointError:
            warnings.warn(f"{change.name}: {_unfit(rows)}; its weights stay as they are", stacklevel=2)
            return SiteFit(change.name, math.nan, math.nan, total, kept=False)
        start = conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
        before = _error(*judged, form.dense(module, change.site.geometry), start, metric)
        after = _error(*judged, fitted.dense, fitted.bias, metric)
        if kept := after < before:
            self._assign(form, conv, module, around, fitted)
        return SiteFit(change.name, before, min(after, before), total, kept)

    def _assign(self, form: Form, conv: nn.Conv2d, module: nn.Module, around: Neighbours, fitted: Fitted) -> None:
        """Puts the fit into the converted model; a bias the conv cannot hold goes into the batch norm behind it."""
        flags = {name: parameter.requires_grad for name, parameter in module.named_parameters()}
        bias = None if conv.bias is None else fitted.bias.to(conv.bias.dtype)
        form.assign(module, fitted.kernels, bias, conv.weight.dtype)
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(flags[name])
        if bias is None and around.norm is not None:
            norms = [model.get_submodule(around.norm) for model in (self.converted, self.original)]
            own, original = (norm.running_mean for norm in norms)
            assert isinstance(own, Tensor)
            assert isinstance(original, Tensor)
            own.copy_(original - fitted.bias)


def _unfit(rows: Rows) -> str:
    """Why there is no fit to samples."""
    largest = max(float(values.abs().max()) for values in rows.fitted)
    if not math.isfinite(largest):
        return "activations are not finite"
    return f"activations reach {largest:.1e}, which is too large to fit to in float32"


def _problem(rows: tuple[Tensor, ...], conv: nn.Conv2d, around: Neighbours) -> tuple[Samples, Behind]:
    """Samples, and what stands behind the conv at their places."""
    sides = rows[2:] or (torch.zeros_like(rows[1]), torch.zeros_like(rows[1]))
    all_known = len(rows) > 2 or around.shortcut is None
    activation = (around.activation,) if around.activation is not None and all_known else ()
    intercept = around.norm is not None or conv.bias is not None
    return Samples(rows[0], rows[1]), Behind(around.scale, around.shift, (sides[0], sides[1]), activation, intercept)


def _error(samples: Samples, behind: Behind, dense: Tensor, bias: Tensor, metric: Tensor) -> float:
    """Relative error over the samples of all processes."""
    sums = site_error(samples, behind, dense, bias, metric)
    error, energy = world.added(*(torch.tensor(value).double() for value in sums))
    return relative(float(error), float(energy))


def _generator(*numbers: int) -> torch.Generator:
    """Random numbers of their own for every site and batch, whoever works on it."""
    seed = 0
    for number in numbers:
        seed = (seed * 1_000_003 + number + 1) % (1 << 62)
    return torch.Generator().manual_seed(seed)


def _too_large(seen: Capture, batches: Sequence[Any]) -> bool:
    """Whether both networks' live activations would take more than 4 GB."""
    one = max(1, images_in(seen.example))
    images = sum(map(images_in, batches))
    return 2 * seen.cost.peak_activation_bytes / one * images > 4e9
