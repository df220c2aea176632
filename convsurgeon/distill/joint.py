r"""All fitted sites together: the distiller over the calibration images, after the fits one by one.

A fit in order repairs at later sites what earlier ones lost, but no earlier site knows what the later ones can take. So
all rewritten convs, and the batch norms behind them, move together against

    loss = error of the outputs + WEIGHT * mean over sites of |z' - z|^2 / E(z)

where `z` is the value behind a site: behind its batch norm, its shortcut and its activation. `E` is its energy around
the mean of every channel. The features keep a few hundred images from being learned by heart. Li et al. 2021 (BRECQ,
arXiv 2102.05426) fit block by block, there for rounding.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from convsurgeon.base.errors import first_line
from convsurgeon.calibration.dataset import first_images, images_in, select_images
from convsurgeon.distill.distiller import QUARTERS, Distiller
from convsurgeon.distill.record import Score
from convsurgeon.fit.lockstep import converted_root, graph_targets
from convsurgeon.graph.capture import Capture
from convsurgeon.graph.example import Example
from convsurgeon.graph.neighbours import alone, callers, neighbours
from convsurgeon.graph.output_error import by_channel, relative_error, scales
from convsurgeon.graph.outputs import answer, float_tensors
from convsurgeon.graph.state import evaluating, undisturbed
from convsurgeon.graph.trace import over
from convsurgeon.planning.plan import Plan

EPOCHS = 4
WEIGHT = 20.0
RATE = 4e-4
BATCH = 32
"""Images a step, fewer where they are few."""
_STEPS_AN_EPOCH = 8

_MACS = 6e12
"""Multiply-accumulates of all steps, above which there are fewer: two minutes of a core."""
_PASSES = 4
"""That a step makes through the network, forwards and backwards, on both sides."""

FAR = 0.1
"""Error from which on the rate is `RATE`; below it falls with the root, as the distance to go does."""
NEAR = 0.03
"""Error below which the joint fit is not tried: it takes the time of all other fits and shows in no metric."""


def fit_jointly(
    seen: Capture,
    converted: nn.Module,
    plan: Plan,
    batches: Sequence[Example],
    judge: Callable[[nn.Module], Score],
    seed: int,
    progress: bool,
) -> None:
    """Move the rewritten convs of a fitted model together, in place, to where `judge` finds the least error."""
    nodes, norms = _points(seen, plan)
    sites = [change.name for change in plan.changes.values() if change.form.fittable]
    modules = [converted.get_submodule(name) for name in (*sites, *norms)]
    parameters = list(dict.fromkeys(parameter for module in modules for parameter in module.parameters()))
    if not parameters or any(parameter.dtype not in (torch.float32, torch.float64) for parameter in parameters):
        return
    size = max(1, min(BATCH, sum(map(images_in, batches)) // _STEPS_AN_EPOCH))
    sample = first_images(batches[0], size)
    try:
        with undisturbed(seen.model), evaluating(converted), _moving(converted, parameters):
            start = judge(converted)
            distiller = Distiller(
                converted,
                parameters,
                loss=_SiteLoss(seen, converted, nodes, sample),
                judge=judge,
                start=start,
                steps=_steps(seen, batches, sample),
                rate=RATE * min(1.0, math.sqrt(start.error / FAR)),
                seed=seed,
            )
            distiller.run(_random_batches(batches, size, seed), desc="fitting together", progress=progress)
    except RuntimeError as error:
        warnings.warn(f"calibration: no joint fit ({first_line(error)})", stacklevel=2)


def _steps(seen: Capture, batches: Sequence[Example], sample: Example) -> int:
    """Return how many steps to take: `EPOCHS`, or fewer where a network is large."""
    size = images_in(sample)
    values = max(1, sum(tensor.numel() for tensor in seen.example.tensors()))
    of_one = _PASSES * seen.cost.macs * sum(tensor.numel() for tensor in sample.tensors()) / values
    epoch = sum(-(-images_in(batch) // size) for batch in batches)
    return max(QUARTERS, min(EPOCHS * epoch, int(_MACS / max(1.0, of_one))))


def _points(seen: Capture, plan: Plan) -> tuple[list[fx.Node], list[str]]:
    """Return the nodes whose values are compared, and the names of the batch norms behind the fitted sites."""
    sites = {name: change for change in plan.changes.values() if change.form.fittable for name in change.site.names}
    calls, opaque = callers(seen.graph.graph, seen.graph), {path for path in seen.opaque if path}
    nodes: list[fx.Node] = []
    norms: list[str] = []
    for node in seen.graph.graph.nodes:
        name = str(node.target) if node.op == "call_module" else ""
        if name in opaque:
            nodes.append(node)
        if name not in sites:
            continue
        conv = seen.graph.get_submodule(name)
        assert isinstance(conv, nn.Conv2d)
        shared = len(sites[name].site.calls) > 1
        around = alone(conv) if shared else neighbours(node, seen.graph, conv, calls)
        nodes.append(around.end or node)
        # a batch norm of an ONNX file keeps what the file says
        if around.norm and getattr(seen.graph.get_submodule(around.norm), "track_running_stats", True):
            norms.append(around.norm)
    return nodes, norms


@contextmanager
def _moving(model: nn.Module, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let only these parameters require gradients inside the block."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


class _SiteLoss:
    """The loss of a batch: original and converted network, compared at their outputs and behind the fitted sites.

    The variances of `sample` are constants, so the loss of a batch is the mean of its parts' losses.
    """

    def __init__(self, seen: Capture, converted: nn.Module, nodes: Sequence[fx.Node], sample: Example) -> None:
        self._original = _Watching(seen.graph, seen.graph, nodes)
        self._converted = _Watching(converted_root(seen, converted), seen.graph, nodes)
        outputs, values = self._original.watched(sample)
        self._scales = scales([outputs])
        self._energies = []
        for value in values:  # around the mean of every channel, or of everything where that is zero
            rows = by_channel(value.detach())
            around = float((rows - rows.mean(1, keepdim=True)).square().mean())
            self._energies.append(around or float(rows.square().mean()) or 1.0)

    def __call__(self, batch: Example) -> Tensor:
        with torch.no_grad():
            wanted, targets = self._original.watched(batch)
        found, values = self._converted.watched(batch)
        parts = [
            (one.float() - two.float()).square().mean() / energy
            for one, two, energy in zip(values, targets, self._energies, strict=True)
        ]
        features = torch.stack(parts).mean() if parts else torch.zeros((), dtype=torch.float32, device="cpu")
        return relative_error(found, wanted, self._scales) + WEIGHT * features


class _Watching(fx.Interpreter):
    """A network that also returns what it computes at some nodes."""

    def __init__(self, root: nn.Module, traced: fx.GraphModule, nodes: Sequence[fx.Node]) -> None:
        super().__init__(over(graph_targets(root, traced), traced.graph))
        self._wanted, self._values = dict.fromkeys(nodes), list[Tensor]()

    def watched(self, batch: Example) -> tuple[list[Tensor], list[Tensor]]:
        """Return what the network is judged at, and the values at the nodes."""
        self._values = []
        found = answer(self.run, Example(tuple(batch.tensors())), self.module.modules())
        return found.judged, self._values

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self._wanted:
            self._values.extend(float_tensors(value))
        return value


def _random_batches(pools: Sequence[Example], size: int, seed: int) -> Iterator[Example]:
    """Yield batches of random images without end, each image once an epoch; a batch is of one pool."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        waiting = []
        for number, pool in enumerate(pools):
            order = torch.randperm(images_in(pool), generator=generator, device="cpu")
            waiting += [(number, rows) for rows in order.split(size)]
        places = torch.randperm(len(waiting), generator=generator, device="cpu")
        for place in reversed(places.tolist()):
            number, rows = waiting[place]
            yield select_images(pools[number], rows)
