"""The command line: parse, call, print. Exit 0 for success, 1 for an error (one line on stderr), 2 for usage."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from convsurgeon.base.errors import ConvSurgeonError, described
from convsurgeon.cli import converting, planning, recovering, timing


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; the console script's entry point."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
        sys.stdout.flush()
        return 0
    except ConvSurgeonError as error:
        return _fail(str(error))
    except KeyboardInterrupt as stop:
        return _fail(f"interrupted; {stop}" if str(stop) else "interrupted; nothing was written")
    except BrokenPipeError:  # `| head` went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if options.debug:
            raise
        if isinstance(error, OSError) and error.filename is not None:  # a name that is too long, a loop of links, ...
            return _fail(f"{str(error.filename)[:200]}: {error.strerror}; choose another path")
        return _fail(f"internal error, {described(error)}; --debug shows where, please report it")


def _fail(message: str) -> int:
    print("convsurgeon: " + " ".join(message.split("\n")), file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="convsurgeon", description="Lighter CNNs from pretrained ones.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for family in (planning, converting, recovering, timing):
        family.add(commands)
    return parser
