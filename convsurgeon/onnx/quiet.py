"""Run other people's code without its log lines and warnings, and find what went wrong in it."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# Warnings of the user's model carry the user's module and are shown.
_CHATTY_MODULES = r"(torch|onnxscript|onnx_ir|onnx|copyreg|convsurgeon)(\.|$)"
_CHATTY_LOGGERS = ("torch", "torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir")


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what torch's exporter, onnxscript and onnxruntime's quantiser say about themselves."""
    thread = threading.get_ident()

    def from_another_thread(record: logging.LogRecord) -> bool:
        return record.thread != thread

    # torch gives its own children handlers and levels, so a parent's level alone does not reach them.
    names = {*_CHATTY_LOGGERS, *(name for name in logging.root.manager.loggerDict if _is_chatty(name))}
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    handler = logging.NullHandler()  # `logging.warning` gives a root without handlers one that stays
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=_CHATTY_MODULES)
        try:
            logging.root.addFilter(from_another_thread)  # the quantiser logs on the root
            logging.root.addHandler(handler)
            for logger in loggers:
                logger.setLevel(logging.CRITICAL + 1)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            logging.root.removeHandler(handler)
            logging.root.removeFilter(from_another_thread)


def _is_chatty(name: str) -> bool:
    return name.startswith(("torch.onnx", "torch.export", "onnxscript", "onnx_ir"))


def root_cause(error: BaseException) -> BaseException:
    """Return the exception at the bottom of a `raise ... from ...` chain."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
