"""Running other people's code without its chatter, and saying in a line what went wrong in it."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

# The exporter warns about its own insides. Warnings of the user's model carry the user's module and stay.
_CHATTY_MODULES = r"(torch|onnxscript|onnx_ir|onnx|copyreg|convsurgeon\.deploy)(\.|$)"
_CHATTY_LOGGERS = ("torch", "torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir", "root")


@contextmanager
def quiet() -> Iterator[None]:
    """Silences warnings and log lines that torch's exporter and onnxscript emit about themselves."""
    loggers = [logging.getLogger(name) for name in _CHATTY_LOGGERS]
    # torch gives its own children handlers and levels, so a parent's level alone does not reach them.
    loggers += [
        child
        for name, child in logging.Logger.manager.loggerDict.items()
        if isinstance(child, logging.Logger)
        and name.startswith(("torch.onnx", "torch.export", "onnxscript", "onnx_ir"))
    ]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=_CHATTY_MODULES)
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL + 1)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def on_cpu(model: nn.Module) -> nn.Module:
    """The model itself if it lives on the CPU, else a copy there: the ONNX file is judged by CPU arithmetic."""
    places = {tensor.device.type for tensor in (*model.parameters(), *model.buffers())}
    return model if places <= {"cpu"} else copy.deepcopy(model).cpu()


def root_cause(error: BaseException) -> BaseException:
    """The exception at the bottom of a `raise ... from ...` chain."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
