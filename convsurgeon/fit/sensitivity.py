r"""What an error at a conv's output costs the network's output, to first order: a Gauss-Newton metric, without labels.

With `J` the derivative of the network's output by a conv's output at one position, an error `e` (O,) there moves the
output by `|J e|^2 = e^T J^T J e`; every output is in units of its own error (see `graph.output_error`). A random vector
`v` of independent unit normals has `E[(J^T v)(J^T v)^T] = J^T J` (Hutchinson 1990), so one backward pass per image from
a random projection of its output gives every conv's metric

    G = mean over images and positions of g g^T,    g = J^T v      (O x O)

A piece that another runtime computes (see `onnxnet`) has no derivative: the values that it reads, each in units of its
own deviation, are projected beside the outputs.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from convsurgeon.base.errors import first_line
from convsurgeon.calibration.dataset import first_batches, first_images, images_in, select_images
from convsurgeon.graph.example import Example
from convsurgeon.graph.output_error import Scale, scales, weigh
from convsurgeon.graph.outputs import answer, outputs
from convsurgeon.graph.state import undisturbed
from convsurgeon.graph.subgraphs import watch_gradient_ends

IMAGES = 200
VALUES = 1 << 16
"""Images that are run: at most so many and half of all; fewer of large outputs, where each pixel is a projection."""

SHARE = 0.3
"""Weight of the identity."""

_LOG = logging.getLogger(__name__)
_LEAST_IMAGES = 16
_BYTES = 1 << 28
"""Activations that a backward pass may keep; it takes no more images at a time than that allows."""
MOST_BYTES = 1 << 30
"""The same of one image, from which on windows of half its sides stand for it, or of a quarter."""
_MULTIPLE = 32
"""Sides of windows, which networks of several levels can halve."""


def gradient_moments(
    model: nn.Module, names: Iterable[str], batches: Sequence[Example], seed: int
) -> dict[str, Tensor]:
    """Return `G` (O, O) in float64 of every named conv, summed over positions and averaged over images.

    So `tr(G D S D^T)` is the squared error of an image's output for an error `D` of the kernel and patches of second
    moment `S`, to first order and as if positions were independent. Parameters' own gradients are not touched.
    """
    images = 0
    convs = {name: model.get_submodule(name) for name in names}
    sums = {}
    for name, conv in convs.items():
        assert isinstance(conv, nn.Conv2d)
        sums[name] = conv.weight.new_zeros((conv.out_channels, conv.out_channels), dtype=torch.float64)
    with undisturbed(model), torch.enable_grad():
        handles = [conv.register_forward_hook(_listener(sums[name])) for name, conv in convs.items()]
        try:
            own = scales([outputs(model, batch) for batch in first_batches(batches, _LEAST_IMAGES)])
            for number, part in enumerate(_parts(model, batches)):
                images += images_in(part)
                _backward(model, part, own, torch.Generator().manual_seed((seed * 7919 + number) % (1 << 62)))
        except RuntimeError as error:
            warnings.warn(f"calibration: no gradients ({first_line(error)}); all outputs count alike", stacklevel=2)
        finally:
            for handle in handles:
                handle.remove()
    return {name: total / max(1, images) for name, total in sums.items()}


def mixed(moment: Tensor) -> Tensor:
    """Return a second moment of gradients (O, O), scaled to mean diagonal 1, plus a share of the identity.

    The derivative at the original says nothing of directions that matter only once errors are large.
    """
    eye = torch.eye(len(moment), dtype=torch.float64, device=moment.device)
    scale = float(moment.diagonal().mean())
    return moment / scale + SHARE * eye if scale > 0 and bool(moment.isfinite().all()) else eye


def _listener(total: Tensor) -> Callable[[nn.Module, object, Tensor], None]:
    """Return a conv's forward hook that adds the second moment of the gradient that comes back to its output."""

    def add(gradient: Tensor | None) -> None:
        if gradient is None:  # what follows lets none through, as a quantised layer
            return
        rows = gradient.detach().float().transpose(0, 1).flatten(1)
        total.add_(rows @ rows.T)

    def listen(_module: nn.Module, _args: object, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(add)

    return listen


def _backward(model: nn.Module, part: Example, own: list[list[Scale]], generator: torch.Generator) -> None:
    """Run forward, and backward from a random projection of every output over its scale, down to the inputs."""
    with watch_gradient_ends(model) as watched, _begin_at_convs(model, part) as first:
        leaves, found = _forward(model, part)
    leaves = leaves or first
    ends = [value for value, _ in watched.values()]
    given = [(one, weigh(one, axes)) for one, axes in zip(found, own, strict=True) if one.requires_grad]
    if not (given or ends) or not leaves:
        raise RuntimeError("no output depends on a value of floating point, or its forward turns gradients off")
    given += [(end, 1 / (end.detach().var(correction=0) or end.new_ones(()))) for end in ends]
    count = images_in(part)
    vectors = []
    for one, weight in given:
        noise = torch.randn(one.shape, generator=generator, dtype=torch.float32, device="cpu").to(one)
        vectors.append(noise * (weight * count / one.numel()).sqrt())
    torch.autograd.grad([one for one, _ in given], leaves, vectors, allow_unused=True)


@contextmanager
def _begin_at_convs(model: nn.Module, part: Example) -> Iterator[list[Tensor]]:
    """Yield the inputs of the first convs, as leaves that require gradients, for inputs that are whole numbers."""
    leaves: list[Tensor] = []

    def begin(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not args or not args[0].is_floating_point() or args[0].requires_grad:
            return None
        leaves.append(args[0].detach().requires_grad_())
        return (leaves[-1] * 1, *args[1:])

    whole = not any(tensor.is_floating_point() for tensor in part.tensors())
    handles = [one.register_forward_pre_hook(begin) for one in model.modules() if whole and isinstance(one, nn.Conv2d)]
    try:
        yield leaves
    finally:
        for handle in handles:
            handle.remove()


def _forward(model: nn.Module, part: Example) -> tuple[list[Tensor], list[Tensor]]:
    """Return the floating-point inputs, as leaves that require gradients, and the outputs."""
    leaves = [tensor.detach().requires_grad_() for tensor in part.tensors() if tensor.is_floating_point()]
    numbered = iter(leaves)
    own = part.map(lambda tensor: next(numbered) * 1 if tensor.is_floating_point() else tensor.clone())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Converting a tensor with requires_grad")  # a forward's own `float(x)`
        return leaves, answer(model, own).judged


def _parts(model: nn.Module, batches: Sequence[Example]) -> Iterator[Example]:
    """Yield the first images, or windows of them, in parts small enough for a backward pass.

    Where one image is not taken these are whole batches.
    """
    cut = 1
    try:
        cut, positions, kept_bytes = _windows(model, first_images(batches[0], 1))
        at_once = max(1, _BYTES // max(1, kept_bytes))
    except Exception as error:  # the user's own forward
        _LOG.info("the model does not run on one image (%s); backward passes take whole batches", first_line(error))
        positions, at_once = _of_one_image(model, batches[0])[0], images_in(batches[0])
    images = 0
    most = max(_LEAST_IMAGES, min(IMAGES, sum(map(images_in, batches)) // 2))
    for batch in batches:
        size = images_in(batch)
        while size and images < most and (images < _LEAST_IMAGES or images * positions < VALUES):
            taken = min(at_once, size, most - images)
            yield _window(first_images(batch, taken), cut, images)
            batch, size, images = select_images(batch, slice(taken, None)), size - taken, images + taken


def _windows(model: nn.Module, one: Example) -> tuple[int, int, int]:
    """Return into how many parts the sides of an image are cut, and `_of_one_image` of such a window."""
    cut, found = 1, _of_one_image(model, one)
    try:
        while found[1] > MOST_BYTES and _window(one, 2 * cut, 0) is not one:
            cut, found = 2 * cut, _of_one_image(model, _window(one, 2 * cut, 0))
    except Exception as error:  # the user's own forward
        _LOG.info("the model does not run on windows of its images: %s", first_line(error))
        return 1, *_of_one_image(model, one)
    return cut, *found


def _window(part: Example, cut: int, number: int) -> Example:
    """Return a window of images, one of the parts that their sides are cut into; what has none stays as it is."""
    tensors = part.tensors()
    sides = [size // cut // _MULTIPLE * _MULTIPLE for size in tensors[0].shape[2:]]
    alike = all(one.dim() == 4 and one.shape[2:] == tensors[0].shape[2:] for one in tensors)
    if cut == 1 or not alike or 0 in sides:
        return part
    top, left = number // cut % cut * sides[0], number % cut * sides[1]
    return part.map(lambda one: one[:, :, top : top + sides[0], left : left + sides[1]])


def images_at_once(model: nn.Module, batch: Example) -> int:
    """Return how many images of a batch a backward pass may take at a time: as many as `_BYTES` allow, at least one.

    Where the model does not run on a single image, that is all of them.
    """
    try:
        with torch.enable_grad():
            return max(1, _BYTES // max(1, _of_one_image(model, first_images(batch, 1))[1]))
    except Exception as error:  # the user's own forward
        _LOG.info("the model does not run on one image (%s); backward passes take whole batches", first_line(error))
        return images_in(batch)


def _of_one_image(model: nn.Module, one: Example) -> tuple[int, int]:
    """Return the positions of an image's largest output (1 for a vector), and the bytes that a backward pass keeps.

    No more of them than `MOST_BYTES` are held to be counted.
    """
    sizes = {parameter.data_ptr(): 0 for parameter in model.parameters()}

    def pack(tensor: Tensor) -> Tensor | None:
        held = sum(sizes.values()) <= MOST_BYTES
        sizes.setdefault(tensor.data_ptr(), tensor.numel() * tensor.element_size())
        return tensor.detach() if held else None  # itself, it would keep its own node alive, and that keeps it

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held):
        found = _forward(model, one)[1]  # lives until the sizes are read, so that no address is used twice
    positions = max((out.shape[2:].numel() for out in found if out.dim() == 4), default=1)
    return positions, sum(sizes.values())
