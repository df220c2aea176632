"""Run other people's code without its log lines and warnings."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# Warnings of the user's model carry the user's module and are shown.
_CHATTY_MODULES = r"(torch|onnxscript|onnx_ir|onnx|copyreg|convsurgeon)(\.|$)"
_CHATTY_FAMILIES = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what torch's exporter, onnxscript and onnxruntime's quantiser say about themselves."""
    thread = threading.get_ident()

    def from_another_thread(record: logging.LogRecord) -> bool:
        return record.thread != thread

    # torch gives its own children handlers and levels, so a parent's level alone does not reach them.
    children = (name for name in logging.root.manager.loggerDict if name.startswith(_CHATTY_FAMILIES))
    names = {"torch", "torch.fx", *_CHATTY_FAMILIES, *children}
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
