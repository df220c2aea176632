"""One-dimensional convs as 2-d convs of one row, so that they are sites like any other."""

from __future__ import annotations

import logging
from typing import Any

from torch import nn

from convsurgeon.base.errors import CaptureError
from convsurgeon.graph.as_conv import Conv1dAsConv
from convsurgeon.graph.capture import Capture, capture
from convsurgeon.graph.model_files import Model
from convsurgeon.graph.obstacles import check_model, holders_of, plain_obstacle
from convsurgeon.onnxnet.network import OnnxNetwork
from convsurgeon.planning.swap import swap_modules

_LOG = logging.getLogger(__name__)


def capture_in_rows(model: Model, example: object) -> Capture:
    """Return the capture of a model with convs of one row for its `Conv1d` layers."""
    try:
        return capture(with_rows(model) if isinstance(model, nn.Module) else model, example)
    except CaptureError as error:
        _LOG.info("Conv1d layers are left as they are: %s", error)
    return capture(model, example)


def with_rows(model: nn.Module) -> nn.Module:
    """Return a copy of a model that computes the same with convs of one row for its `Conv1d` layers.

    A model without such layers comes back as it is, and so does an ONNX file. A layer with more than weights (hooks, a
    subclass, a weight that is read elsewhere) stays and is reported like every conv that is not rewritten.
    """
    if isinstance(model, OnnxNetwork | nn.Conv1d):
        return model
    check_model(model)
    layers = {id(module): module for module in model.modules() if isinstance(module, nn.Conv1d)}
    holders = holders_of(model) if layers else {}
    new: dict[int, Any] = {
        key: Conv1dAsConv(layer)
        for key, layer in layers.items()
        if layer.padding_mode == "zeros" and not plain_obstacle(layer, nn.Conv1d, holders)
    }
    return swap_modules(model, new) if new else model
