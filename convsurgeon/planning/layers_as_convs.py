"""Other layers as the 2-d convs that they are, so that they are sites like any other.

A `Conv1d` is a conv of one row. A strided `ConvTranspose2d` is a conv and a pixel shuffle, as which it is slower unless
a form takes its place: what stays dense becomes the transposed conv again, in the result and in every file. Of an ONNX
file the 1-d convs got their row when it was read (see `onnxnet.rows`).
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any, TypeGuard

from torch import nn

from convsurgeon.base.errors import CaptureError
from convsurgeon.base.normal import in_normal_mode
from convsurgeon.forms.as_conv import Conv1dAsConv, CutConvTranspose2d, TransposedAsConv, transposed_obstacle
from convsurgeon.graph.capture import Capture, capture
from convsurgeon.graph.model_files import Model, open_model
from convsurgeon.graph.obstacles import check_model, holders_of, plain_obstacle
from convsurgeon.onnxnet.network import OnnxNetwork
from convsurgeon.planning.swap import M, swap_modules

_LOG = logging.getLogger(__name__)


@in_normal_mode
def capture_as_convs(model: Model, example: object) -> Capture:
    """Return the capture of a model with convs for its `Conv1d` and strided `ConvTranspose2d` layers."""
    model, example = open_model(model, example)
    try:
        seen = capture(with_convs(model), example)
        return _with_own_costs(seen, model) if any(map(_is_dense, seen.model.modules())) else seen
    except CaptureError as error:
        _LOG.info("Conv1d and ConvTranspose2d layers are left as they are: %s", error)
    return capture(model, example)


def with_convs(model: M) -> M:
    """Return a copy of a model that computes the same with convs for its `Conv1d` and strided `ConvTranspose2d` layers.

    A model without such layers comes back as it is. A layer with more than weights (hooks, a subclass, a weight that is
    read elsewhere) stays and is reported like every conv that is not rewritten.
    """
    if isinstance(model, nn.Conv1d | nn.ConvTranspose2d):
        return model
    check_model(model)
    kinds = nn.ConvTranspose2d if isinstance(model, OnnxNetwork) else nn.Conv1d | nn.ConvTranspose2d
    layers = {id(one): one for one in model.modules() if isinstance(one, kinds)}
    holders = holders_of(model) if layers else {}
    new: dict[int, Any] = {}
    for key, layer in layers.items():
        if isinstance(layer, nn.Conv1d):
            if layer.padding_mode == "zeros" and not plain_obstacle(layer, nn.Conv1d, holders):
                new[key] = Conv1dAsConv(layer)
            continue
        plain = CutConvTranspose2d if isinstance(layer, CutConvTranspose2d) else nn.ConvTranspose2d
        if not transposed_obstacle(layer) and not plain_obstacle(layer, plain, holders):
            new[key] = TransposedAsConv(layer)
    return swap_modules(model, new) if new else model


def with_transposed(model: M) -> M:
    """Return a copy of a model with transposed convs where `with_convs` put convs that are still dense."""
    new: dict[int, Any] = {id(one): one.as_it_was() for one in model.modules() if _is_dense(one)}
    return swap_modules(model, new) if new else model


def _is_dense(module: nn.Module) -> TypeGuard[TransposedAsConv]:
    return isinstance(module, TransposedAsConv) and isinstance(module.conv, nn.Conv2d)


def _with_own_costs(seen: Capture, model: Model) -> Capture:
    """Return a capture with the costs of the model's own layers, since a conv and a shuffle has taps of zeros, too."""
    own = capture(model, seen.example)
    known = {site.name: site for site in own.sites}
    sites = []
    for site in seen.sites:
        layer = known.get(site.name.removesuffix(".conv"))
        if site.name not in known and layer is not None:
            site = dataclasses.replace(site, params=layer.params, macs=layer.macs)
        sites.append(dataclasses.replace(site, share=site.macs / own.cost.macs if own.cost.macs else 0.0))
    return dataclasses.replace(seen, sites=tuple(sites), cost=own.cost)
