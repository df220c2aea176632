"""Which version of the package this is."""

from __future__ import annotations

import importlib.metadata


def version() -> str:
    """Return this package's version, as it is installed."""
    try:
        return importlib.metadata.version("convsurgeon")
    except importlib.metadata.PackageNotFoundError:
        return "0+unknown"
