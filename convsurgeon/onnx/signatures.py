"""What torch's exporter works out again and again, though it does not change.

Before every export torch makes a table of all operators that it can write. For that it parses the source of a thousand
functions and reads their type hints, which takes a second of a processor; the export of a small network takes less.
Those are kept for the process. And it lists all operators that it knows once for every library that has any, fifty
times: kept for one export, since another may begin after a library was loaded.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch


@contextmanager
def signatures_kept() -> Iterator[None]:
    """Have the exporter read the source and the signature of a function once, and list its operators once an export.

    With a torch or an onnxscript that does this differently, it takes its time as ever.
    """
    try:
        readers = [*_readers(), _lister()]
    except (ImportError, AttributeError, KeyError):
        readers = []
    with ExitStack() as stack:
        for owner, name, reader in readers:
            stack.enter_context(patch.object(owner, name, reader))
        yield


@functools.cache
def _readers() -> list[tuple[Any, str, Any]]:
    """Return whose readers are replaced, their names, and readers that remember what they returned."""
    from onnxscript.values import TracedOnnxFunction
    from torch.onnx._internal.exporter import _schemas

    parsed = functools.cached_property[Any](vars(TracedOnnxFunction)["function_ir"].fget)
    parsed.__set_name__(TracedOnnxFunction, "function_ir")
    signature = functools.cache(_schemas.op_signature_from_function)
    return [(TracedOnnxFunction, "function_ir", parsed), (_schemas, "op_signature_from_function", signature)]


def _lister() -> tuple[Any, str, Any]:
    """Return the same of what lists operators, new for every export."""
    from torch._export import utils

    return utils, "_materialize_cpp_cia_ops", functools.cache(utils._materialize_cpp_cia_ops)
