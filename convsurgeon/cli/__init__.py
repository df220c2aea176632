"""The command line."""

from convsurgeon.cli.main import main

__all__ = ["main"]
