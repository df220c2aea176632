"""Each site fitted to the original's output, in the order in which sites run, on what the converted network feeds it.

Original and converted graph run in lockstep over the calibration batches, once. At a changed site, random positions of
the original's output and of the converted network's values make a least-squares problem (see `site`). The converted
network goes on with its solution, so later sites repair what earlier ones lost.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from convsurgeon.base.progress import bar
from convsurgeon.calibration.dataset import Calibration, images_in
from convsurgeon.fit import sensitivity
from convsurgeon.fit.known import Answers, Known, Places
from convsurgeon.fit.lockstep import Runner, converted_root, walk
from convsurgeon.fit.samples import Samples, patches, positions_per_image
from convsurgeon.fit.site import Epilogue, Fitted, fit_site, site_error
from convsurgeon.graph.capture import Capture
from convsurgeon.graph.neighbours import Neighbours, alone, callers, neighbours
from convsurgeon.graph.state import evaluating, undisturbed
from convsurgeon.graph.trace import UNTRACED
from convsurgeon.planning.plan import Change, Plan

_MOST_BYTES = 8e8
"""Live activations of both networks above which they are kept on disk."""

Columns = tuple[Tensor, ...]
"""Rows of patches, of targets and, where there is a shortcut, of its values in both networks."""


@dataclass(frozen=True)
class SiteFit:
    """The error of a site behind its batch norm and activation, on samples that it was not fitted to.

    Args:
        name: of the site.
        before: the relative error in the metric of the fit, which weighs outputs by their effect on the network's.
        after: the same of the weights that were kept.
        positions: how many samples there were.
        kept: whether the fit was better and was kept.
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
    *,
    seed: int,
    progress: bool,
    effort: float = 1.0,
    known: Known | None = None,
) -> list[SiteFit]:
    """Fit the changed sites of a converted model in place, in the order in which they run.

    Args:
        seen: capture of the original.
        converted: what `operate` made of it; its weights are changed.
        plan: as it was carried out.
        data: calibration set.
        seed: of the positions that are drawn.
        progress: whether to show a bar over the sites.
        effort: the share of the usual steps that a site's fit may take.
        known: from earlier fits to this network; this one adds to it.
    """
    found = []
    with undisturbed(seen.model), evaluating(converted):
        fits = _SequentialFit(seen, converted, plan, data, seed, effort, known or Known()).run()
        with bar(total=len(plan.changes), desc="fitting", unit="layer", show=progress) as shown:
            for done in fits:
                found.append(done)
                shown.update()
    return found


class _SequentialFit:
    """One run in lockstep."""

    def __init__(
        self,
        seen: Capture,
        converted: nn.Module,
        plan: Plan,
        data: Calibration,
        seed: int,
        effort: float,
        known: Known,
    ) -> None:
        fits = [change for change in plan.changes.values() if change.form.fittable]
        names = [change.name for change in fits]
        self.seen, self.converted, self.images, self.seed, self.effort = seen, converted, data.images, seed, effort
        self.known = known
        if unknown := [name for name in names if name not in known.gradients]:
            known.gradients.update(sensitivity.gradient_moments(seen.model, unknown, data.fitted, seed))
        self.changes = {name: change for change in fits for name in change.site.names}
        self.calls = callers(seen.graph.graph, seen.graph)
        self.opaque = {path or UNTRACED for path in seen.opaque} | ({""} if "" in seen.opaque else set())
        wanted = self.changes.keys() | self.opaque
        self.stops = {
            node: index
            for index, node in enumerate(seen.graph.graph.nodes)
            if node.op == "call_module" and str(node.target) in wanted
        }
        self.answers_known = not self.opaque and all(self._key(node) in known.answers for node in self.stops)
        networks = 1 if self.answers_known else 2
        live_bytes = networks * seen.cost.peak_activation_bytes * data.images / max(1, images_in(seen.example))
        roots = (seen.graph, converted_root(seen, converted))
        self.original_run, self.converted_run = (
            Runner(root, seen.graph, data.fitted, spill=live_bytes > _MOST_BYTES) for root in roots
        )
        self.earlier: dict[str, tuple[Columns, Columns]] = {}

    def run(self) -> Iterator[SiteFit]:
        """Yield every site as it is fitted; one that is called again is fitted again, to all its calls so far."""
        runners = (self.converted_run,) if self.answers_known else (self.original_run, self.converted_run)
        for node in walk(self.seen.graph.graph, runners, self.stops):
            change = self.changes.get(str(node.target))
            if change is not None:
                yield self._fit_call(node, change)
            else:
                yield from self._fit_inside(node, self.stops[node])

    def _fit_call(self, node: fx.Node, change: Change) -> SiteFit:
        conv = self.seen.model.get_submodule(change.name)
        assert isinstance(conv, nn.Conv2d)
        shared = len(change.site.calls) > 1  # what follows differs from call to call
        around = alone(conv) if shared else neighbours(node, self.seen.graph, conv, self.calls)
        source = node.args[0] if node.args else node.kwargs["input"]
        assert isinstance(source, fx.Node)
        beside = around.shortcut
        if beside not in self.converted_run.environments[0]:
            beside = None
        answers = self._answers(node, conv, beside)
        side = None if beside is None else answers.places.rows(self.converted_run.of(beside))
        return self._fit(change, conv, around, *_columns(conv, answers, self.converted_run.of(source), side))

    def _key(self, node: fx.Node) -> tuple[int, int, int]:
        """Return what the answers at a call are known by: images, its place in the graph, positions of an image."""
        conv = self.seen.model.get_submodule(self.changes[str(node.target)].name)
        assert isinstance(conv, nn.Conv2d)
        return self.images, self.stops[node], self._count(conv)

    def _count(self, conv: nn.Conv2d) -> int:
        return positions_per_image(self.images, conv.weight[0].numel() * conv.groups, self.effort)

    def _answers(self, node: fx.Node, conv: nn.Conv2d, beside: fx.Node | None) -> Answers:
        """Return what the original computes at a call, as it is known or now; then it is known."""
        key = self._key(node)
        if self.answers_known:
            return self.known.answers[key]
        run = self.original_run
        answers = self._draw(conv, run.of(node), self.stops[node])
        if beside is not None:
            answers = dataclasses.replace(answers, shortcut=answers.places.rows(run.of(beside)))
        self.known.answers[key] = answers.kept()
        return answers

    def _draw(self, conv: nn.Conv2d, targets: Sequence[Tensor], index: int) -> Answers:
        """Return what a conv answers at random positions."""
        generators = [_generator(self.seed, index, number) for number in range(len(targets))]
        places = Places.draw(targets, self._count(conv), generators)
        return Answers(places, places.rows(targets), None)

    def _fit_inside(self, node: fx.Node, index: int) -> Iterator[SiteFit]:
        """Yield the sites of a region that could not be traced, one run of the region for each."""
        region = "" if "" in self.opaque else f"{node.target}."
        inside = {name: change for name, change in self.changes.items() if name.startswith(region)}
        modules = {self.seen.model.get_submodule(name): change for name, change in inside.items()}
        order = dict.fromkeys(conv for conv, _ in self.original_run.watched(node, list(modules), 0))
        for step, conv in enumerate(order):
            change = modules[conv]
            assert isinstance(conv, nn.Conv2d)
            inner = self.converted.get_submodule(change.name)
            targets, sources = [], []
            for number in range(len(self.original_run.environments)):
                wanted = self.original_run.watched(node, [conv], number)
                given = self.converted_run.watched(node, [inner], number)
                targets.append(torch.cat([out for _, (_, out) in wanted]))
                sources.append(torch.cat([x for _, (x, _) in given]))
            answers = self._draw(conv, targets, index + step * 7919)
            yield self._fit(change, conv, alone(conv), *_columns(conv, answers, sources, None))

    def _fit(
        self, change: Change, conv: nn.Conv2d, around: Neighbours, fitted_to: Columns, judged_by: Columns
    ) -> SiteFit:
        if len(change.site.calls) > 1:
            if change.name in self.earlier:
                earlier = self.earlier[change.name]
                fitted_to, judged_by = _joined([earlier[0], fitted_to]), _joined([earlier[1], judged_by])
            self.earlier[change.name] = fitted_to, judged_by
        module, form = self.converted.get_submodule(change.name), change.form
        metric = sensitivity.mixed(self.known.gradients[change.name])
        total = len(fitted_to[0]) + len(judged_by[0])
        try:
            start_at = self.known.starts.get((change.name, form.label))
            fitted = fit_site(form, conv, *_problem(fitted_to, conv, around), metric, self.effort, start_at)
        except (MemoryError, RuntimeError) as error:
            error.add_note(change.name)  # which layer memory ran out at
            raise
        except FloatingPointError:
            warnings.warn(f"{change.name}: {_reason(fitted_to)}; its weights stay as they are", stacklevel=2)
            return SiteFit(change.name, math.nan, math.nan, total, kept=False)
        self.known.starts[change.name, form.label] = fitted.factors
        start = conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
        judged = _problem(judged_by, conv, around)
        before = site_error(*judged, form.dense(module, change.site.geometry), start, metric)
        after = site_error(*judged, fitted.dense, fitted.bias, metric)
        if kept := after < before:
            self._assign(change, conv, module, around, fitted)
        return SiteFit(change.name, before, min(after, before), total, kept)

    def _assign(self, change: Change, conv: nn.Conv2d, module: nn.Module, around: Neighbours, fitted: Fitted) -> None:
        """Put the fit into the converted model; a bias the conv cannot hold goes into the batch norm behind it."""
        flags = {name: parameter.requires_grad for name, parameter in module.named_parameters()}
        bias = None if conv.bias is None else fitted.bias.to(conv.bias.dtype)
        change.form.assign(module, fitted.kernels, bias, conv.weight.dtype)
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(flags[name])
        if bias is None and around.norm is not None:
            norms = [model.get_submodule(around.norm) for model in (self.converted, self.seen.model)]
            own, original = (norm.running_mean for norm in norms)
            assert isinstance(own, Tensor)
            assert isinstance(original, Tensor)
            own.copy_(original - fitted.bias)


def _columns(
    conv: nn.Conv2d, answers: Answers, sources: Sequence[Tensor], shortcut: Tensor | None
) -> tuple[Columns, Columns]:
    """Return samples of what a conv reads in the converted network and answers in the original, to fit to and to judge.

    Args:
        conv: the original.
        answers: its own.
        sources: what the converted network feeds it, by batch.
        shortcut: what the converted network adds to its output there.
    """
    columns = [answers.places.rows(sources, lambda x, where: patches(x, conv, where)), answers.targets]
    if answers.shortcut is not None and shortcut is not None:
        columns += [answers.shortcut, shortcut]
    first = sum(answers.places.fitted_to)
    return tuple(one[:first] for one in columns), tuple(one[first:] for one in columns)


def _joined(parts: Sequence[Columns]) -> Columns:
    """Return the rows of all parts; those of a single one are not copied."""
    return parts[0] if len(parts) == 1 else tuple(torch.cat(column) for column in zip(*parts, strict=True))


def _problem(columns: Columns, conv: nn.Conv2d, around: Neighbours) -> tuple[Samples, Epilogue]:
    """Return samples, and what follows the conv at their places."""
    nothing = columns[1].new_zeros(1).expand_as(columns[1])
    shortcut = columns[2:] or (nothing, nothing)
    all_known = len(columns) > 2 or around.shortcut is None
    epilogue = Epilogue(
        around.scale,
        around.shift,
        shortcut=(shortcut[0], shortcut[1]),
        activation=around.activation if all_known else None,
        intercept=around.norm is not None or conv.bias is not None,
    )
    return Samples(columns[0], columns[1]), epilogue


def _reason(columns: Columns) -> str:
    """Return why there is no fit to samples."""
    largest = max(float(values.abs().max()) for values in columns)
    if not math.isfinite(largest):
        return "activations are not finite"
    return f"activations reach {largest:.1e}, which is too large to fit to in float32"


def _generator(*numbers: int) -> torch.Generator:
    """Return random numbers of their own for every site and batch."""
    seed = 0
    for number in numbers:
        seed = (seed * 1_000_003 + number + 1) % (1 << 62)
    return torch.Generator().manual_seed(seed)
