"""Options as they are typed, and which entries of its configuration the installed onnxruntime knows."""

from __future__ import annotations

import argparse
import difflib
import functools
import re
from collections.abc import Iterable
from pathlib import Path

_PIECE = 8
"""Bytes of a text that a compiler keeps together at least."""
_PROVIDER = "executionprovider"
_ENTRY = re.compile(rb"session\.[a-z0-9_.]{4,}")


def read_option(text: str) -> tuple[str, str]:
    """Return the name and the value of NAME=VALUE, as argparse reads an option."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not NAME=VALUE")
    return name, value


@functools.cache
def why_unknown(name: str) -> str:
    """Return why the runtime would overlook an entry of its session's configuration; empty if it knows the name.

    The runtime takes any name in silence. Those that it reads stand in its library, whole or in pieces.
    """
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state

    library, key = Path(onnxruntime_pybind11_state.__file__).read_bytes(), name.encode()
    starts = (min(start, len(key) - _PIECE) for start in range(0, len(key), _PIECE))
    found = _ENTRY.findall(library)
    if not found or all(key[start : start + _PIECE] in library for start in starts):
        return ""
    near = nearest(name, sorted({one.decode() for one in found}))
    return f"{name}: onnxruntime {onnxruntime.__version__} has no such entry{near}"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return words on the known name that a misspelt one is nearest to; empty if none is near."""
    short = {one.lower().replace(_PROVIDER, ""): one for one in sorted(known)}
    near = difflib.get_close_matches(str(name).lower().replace(_PROVIDER, ""), short, n=1)
    return f"; is it {short[near[0]]}?" if near and short[near[0]] != name else ""
