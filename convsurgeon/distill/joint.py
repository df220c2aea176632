r"""All fitted sites together: some steps of descent from where the fits one by one have ended.

A fit in order repairs at later sites what earlier ones lost, but no earlier site knows what the later ones can take. So
afterwards all rewritten convs, and the batch norms behind them, move together against

    loss = |out' - out|^2 / E(out) + WEIGHT * mean over sites of |z' - z|^2 / E(z)

where `z` stands behind a site: behind its batch norm, its shortcut and its activation, where they follow. `E` is the
energy around the mean of every channel. The features are what keeps a few hundred images from being learnt by heart:
with the output alone the error on others hardly falls. The teacher is the original; no label is read. Li et al. 2021
(BRECQ, arXiv 2102.05426) fit block by block, there for rounding; here one run over the whole network serves the output
with every step, too.

Steps are SOAP's (see `soap`), their rate rises over a tenth of them and falls with a cosine. The state that serves the
held-back images best is kept; where a quarter of the steps led away from it, the next begins there again and slower.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from tqdm import tqdm

from convsurgeon.base import processes as world
from convsurgeon.base.errors import first_line
from convsurgeon.calibration.dataset import first_images, images_in, select_images
from convsurgeon.distill.soap import Soap
from convsurgeon.fit.lockstep import named, root_like
from convsurgeon.fit.sensitivity import images_at_once
from convsurgeon.graph.capture import Capture
from convsurgeon.graph.example import Example
from convsurgeon.graph.neighbours import Neighbours, alone, callers, neighbours
from convsurgeon.graph.outputs import float_tensors
from convsurgeon.graph.state import copy_state, evaluating, restore_state, undisturbed
from convsurgeon.planning.plan import Plan

EPOCHS = 10
WEIGHT = 20.0
RATE = 1e-3
BATCH = 32
"""Images a step, fewer where they are few.

ResNet-20 at 0.2 of the MACs, 900 images, seed 5: the held-back error is 0.104 as fitted one by one and with a weight of
0 (0.027 on the images fitted to), 0.093 with 1, 0.087 with 5, 0.085 with 20 and 50; 0.083 after 20 epochs; rates of
5e-4 to 2e-3 do alike.
"""

_MACS = 2e13
"""Multiply-accumulates of all steps, above which there are fewer: some minutes of a core."""
_PASSES = 4
"""That a step makes through the network, forwards and backwards, on both sides."""

_STEPS_AN_EPOCH = 8
_WARM = 0.1
QUARTERS = 4
SLOWER = 5
"""What the rate is divided by where a quarter of the steps has led away, from which the search goes back."""
FAR = 0.1
"""Relative error from which on the rate is `RATE`; below it falls with the root, as the distance to go does.

DnCNN at 0.25 of the MACs (an error of 0.00098), seed 5: nothing is gained at 1e-3.
"""

NEAR = 0.003
"""Relative error below which it is not tried: it takes a network's time and shows in no metric.

DnCNN at 0.25 of the MACs, seed 5: 0.00098 -> 0.00090 in 156 s of a core, and 30.23 -> 30.24 dB.
"""

Judge = Callable[[nn.Module], float]
"""A model's error on held-back images."""


def fit_jointly(
    seen: Capture,
    converted: nn.Module,
    plan: Plan,
    batches: Sequence[Example],
    judge: Judge,
    seed: int,
    progress: bool,
) -> None:
    """Moves the rewritten convs of a fitted model together, in place; it ends where `judge` likes it best.

    Args:
        seen: capture of the original, which is not changed.
        converted: what `operate` made of it, fitted.
        plan: as it was carried out.
        batches: images to fit to; under `torch.distributed` every process holds all and uses its share.
        judge: the error that decides.
        seed: of the images that a step takes.
        progress: whether to show a bar over the steps.
    """
    points = _Points(seen, plan)
    parameters = points.parameters(converted)
    if not parameters or any(parameter.dtype not in (torch.float32, torch.float64) for parameter in parameters):
        return
    flags = [(parameter, parameter.requires_grad) for parameter in converted.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        with undisturbed(seen.model), evaluating(converted):
            draw = _Draw(batches, seed)
            sides = _Sides(seen, converted, points, draw.first())
            _descend(sides, parameters, draw, _steps(seen, draw), judge, progress)
    except RuntimeError as error:
        warnings.warn(f"calibration: no joint fit ({first_line(error)})", stacklevel=2)
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
            parameter.grad = None
    world.agree(converted)


def _steps(seen: Capture, draw: _Draw) -> int:
    """How many: `EPOCHS`, or fewer where a network is large."""
    values = max(1, sum(tensor.numel() for tensor in seen.example.tensors()))
    of_one = _PASSES * seen.cost.macs * sum(tensor.numel() for tensor in draw.first().tensors()) / values
    return max(QUARTERS, min(EPOCHS * draw.batches, int(_MACS / max(1.0, of_one))))


def _descend(
    sides: _Sides, parameters: list[nn.Parameter], draw: _Draw, steps: int, judge: Judge, progress: bool
) -> None:
    """The steps; after every quarter of them the held-back images say whether to go on from there, and how fast."""
    best, state = judge(sides.converted), copy_state(sides.converted)
    rate = RATE * min(1.0, math.sqrt(best / FAR))
    optimizer = Soap(parameters, lr=rate)
    with tqdm(total=steps, desc="fitting together", unit="step", disable=world.silent(progress)) as bar:
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = rate * _schedule(step / steps)
            _step(sides, parameters, optimizer, draw.batch())
            bar.update()
            if (step + 1) * QUARTERS // steps == step * QUARTERS // steps:
                continue
            error = judge(sides.converted)
            bar.set_postfix_str(f"error {best:.4f} -> {error:.4f}")
            if error < best:
                best, state = error, copy_state(sides.converted)
            elif step + 1 < steps:  # too fast for a network that is as near as this one
                restore_state(sides.converted, state)
                rate /= SLOWER
                optimizer = Soap(parameters, lr=rate)
    restore_state(sides.converted, state)


def _step(sides: _Sides, parameters: list[nn.Parameter], optimizer: Soap, batch: Example) -> None:
    """One step on a batch, of which every process takes its share."""
    own, images = select_images(batch, slice(world.rank(), None, world.size())), images_in(batch)
    found = [torch.zeros_like(parameter) for parameter in parameters]
    for start in range(0, images_in(own), sides.at_once):
        part = select_images(own, slice(start, start + sides.at_once))
        with torch.enable_grad():
            loss = sides.loss(part) * (images_in(part) / images)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        found = [total if one is None else total + one for total, one in zip(found, gradients, strict=True)]
    for parameter, gradient in zip(parameters, world.added(*found), strict=True):
        parameter.grad = gradient
    optimizer.step()


def _schedule(done: float) -> float:
    """The rate's share after a share of the steps."""
    return min(1.0, done / _WARM + 0.1) * (1 + math.cos(math.pi * done)) / 2


class _Points:
    """The nodes behind the fitted sites, and what may move there."""

    def __init__(self, seen: Capture, plan: Plan) -> None:
        self.names = [change.name for change in plan.changes.values() if change.form.fittable]
        sites = {name: plan.changes[first] for first in self.names for name in plan.changes[first].site.names}
        calls = callers(seen.graph.graph, seen.graph)
        opaque = {path for path in seen.opaque if path}
        self.nodes: list[fx.Node] = []
        self.norms: list[str] = []
        for node in seen.graph.graph.nodes:
            change = sites.get(str(node.target)) if node.op == "call_module" else None
            if change is not None:
                around = self._around(node, seen, len(change.site.calls), calls)
                self.nodes.append(around.end or node)
                if around.norm is not None and _moves(seen.graph.get_submodule(around.norm)):
                    self.norms.append(around.norm)
            elif node.op == "call_module" and str(node.target) in opaque:
                self.nodes.append(node)

    def _around(self, node: fx.Node, seen: Capture, times: int, calls: Any) -> Neighbours:
        conv = seen.graph.get_submodule(str(node.target))
        assert isinstance(conv, nn.Conv2d)
        return alone(conv) if times > 1 else neighbours(node, seen.graph, conv, calls)

    def parameters(self, converted: nn.Module) -> list[nn.Parameter]:
        """Those of the rewritten convs and of the batch norms behind them, each once."""
        modules = (converted.get_submodule(name) for name in (*self.names, *self.norms))
        return list(dict.fromkeys(parameter for module in modules for parameter in module.parameters()))


def _moves(norm: nn.Module) -> bool:
    """Whether a batch norm may change; one of an ONNX file keeps what the file says."""
    return bool(getattr(norm, "track_running_stats", True))


class _Sides:
    """Original and converted network, run through the same graph and compared behind the sites and at their end.

    `at_once` images go through them for one gradient, which keeps the activations of all of them.

    The energies of `sample` are constants, so that the loss of a batch is the mean of its parts' losses.
    """

    def __init__(self, seen: Capture, converted: nn.Module, points: _Points, sample: Example) -> None:
        self.converted = converted
        self.at_once = images_at_once(converted, sample)
        self._original = _Watching(seen.graph, seen.graph, points.nodes)
        self._converted = _Watching(root_like(seen, converted), seen.graph, points.nodes)
        self._energies = [[_energy(value) for value in values] for values in self._original.watched(sample)]

    def loss(self, batch: Example) -> Tensor:
        """Mean over the batch."""
        with torch.no_grad():
            wanted = self._original.watched(batch)
        found = self._converted.watched(batch)
        output, features = (_apart(*three) for three in zip(found, wanted, self._energies, strict=True))
        return output + WEIGHT * features


class _Watching(fx.Interpreter):
    """A network that also gives what it computes at some nodes."""

    def __init__(self, root: nn.Module, traced: fx.GraphModule, nodes: Sequence[fx.Node]) -> None:
        super().__init__(fx.GraphModule(named(root, traced), traced.graph))
        self._wanted, self._seen = dict.fromkeys(nodes), list[Tensor]()

    def watched(self, batch: Example) -> tuple[list[Tensor], list[Tensor]]:
        """The outputs, and the values at the nodes."""
        self._seen = []
        output = self.run(*(tensor.detach().clone() for tensor in batch.tensors()))
        return float_tensors(output), self._seen

    def run_node(self, n: fx.Node) -> Any:
        """A node's value, which is kept if it is watched."""
        value = super().run_node(n)
        if n in self._wanted:
            self._seen.extend(float_tensors(value))
        return value


class _Draw:
    """Batches of random images, each image once an epoch."""

    def __init__(self, pools: Sequence[Example], seed: int) -> None:
        self._pools = pools
        self._generator = torch.Generator().manual_seed(seed)
        self._size = max(1, min(BATCH, sum(map(images_in, pools)) // _STEPS_AN_EPOCH))
        self._waiting: list[tuple[int, Tensor]] = []
        self.batches = sum(-(-images_in(pool) // self._size) for pool in pools)

    def first(self) -> Example:
        """A sample: always the same one."""
        return first_images(self._pools[0], self._size)

    def batch(self) -> Example:
        """The next one."""
        if not self._waiting:
            self._waiting = self._shuffled()
        number, rows = self._waiting.pop()
        return select_images(self._pools[number], rows)

    def _shuffled(self) -> list[tuple[int, Tensor]]:
        found = []
        for number, pool in enumerate(self._pools):
            order = torch.randperm(images_in(pool), generator=self._generator)
            found += [(number, rows) for rows in order.split(self._size)]
        return [found[int(place)] for place in torch.randperm(len(found), generator=self._generator)]


def _apart(found: list[Tensor], wanted: list[Tensor], energies: list[float]) -> Tensor:
    """Mean relative squared error of some tensors; 0 of none."""
    pairs = zip(found, wanted, energies, strict=True)
    parts = [(one.float() - two.float()).square().mean() / energy for one, two, energy in pairs]
    return torch.stack(parts).mean() if parts else torch.zeros(())


def _energy(values: Tensor) -> float:
    """Mean square around the mean of every channel, or of everything where that is nothing."""
    exact = values.detach().double()
    around = [0, *range(2, exact.dim())] if exact.dim() > 1 else [0]
    found = float((exact - exact.mean(around, keepdim=True)).square().mean())
    return found or float(exact.square().mean()) or 1.0
