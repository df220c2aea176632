"""The command line: parse, call, print. Exit 0 for success, 1 for an error (in a line), 2 for usage, 130 for Ctrl-C."""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence

import msgspec

from convsurgeon.base.errors import ConvSurgeonError, describe, reason
from convsurgeon.base.tables import printable
from convsurgeon.base.version import version
from convsurgeon.cli.arguments import add
from convsurgeon.cli.commands import COMMANDS, Command
from convsurgeon.cli.paths import check_paths

INTERRUPTED = 130
"""The exit code of a command that Ctrl-C ended: 128 + SIGINT, as shells have it."""
_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    return run(parse(sys.argv[1:] if arguments is None else arguments))


def parse(given: Sequence[str]) -> argparse.Namespace:
    """Return the options of a command; end the process with a line where they cannot be read."""
    parser = _parser(next((word for word in given if word in COMMANDS), None))
    for option, value in zip(("COMMAND", *given), given, strict=False):
        if not value or (value.startswith("--") and value.endswith("=")):  # such as an unset variable of a shell
            parser.error(f"argument {value.rstrip('=') or option}: is empty; say what is meant, or leave it out")
    return parser.parse_args(given)


def run(options: argparse.Namespace, ready: Callable[[], object] = lambda: None) -> int:
    """Run a command and return its exit code; `ready` is called once all is loaded, which takes seconds."""
    try:
        check_paths(options)
        command = load(options)
        ready()
        _run(command, options)
        if sys.stdout is not None:  # None: pythonw, a service
            sys.stdout.flush()
        return 0
    except KeyboardInterrupt as stop:
        return _interrupted(stop)
    except BrokenPipeError:  # `| head` went away
        _mute()
        return 1
    except Exception as error:
        if isinstance(error.__context__ or error.__cause__, KeyboardInterrupt):  # compiled code made another of it
            return _interrupted()
        with contextlib.suppress(OSError):  # nobody listens
            print("convsurgeon: " + printable(" ".join(_tell(error).splitlines())), file=sys.stderr)
        return 1


def _run(command: Callable[[argparse.Namespace], object], options: argparse.Namespace) -> None:
    """Run a command; with --json nothing else goes to the standard output, whatever the user's own code prints."""
    told: set[str] = set()

    def tell(message: Warning | str, *_: object, **__: object) -> None:
        if str(message) not in told:
            print(f"convsurgeon: warning: {printable(' '.join(str(message).split()))}", file=sys.stderr)
        told.add(str(message))

    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr if options.json else sys.stdout):
        warnings.showwarning = tell
        values = command(options)
    if values is not None:
        print(msgspec.json.format(msgspec.json.encode(values), indent=1).decode())


def _interrupted(saved: object = "") -> int:
    with contextlib.suppress(OSError):  # nobody listens
        print(f"convsurgeon: interrupted; {str(saved) or 'nothing was written'}", file=sys.stderr, flush=True)
    return INTERRUPTED


def _tell(error: Exception) -> str:
    """Return one line about whatever went wrong."""
    if isinstance(error, ConvSurgeonError):
        return str(error)
    if isinstance(error, OSError) and error.errno in _FULL:
        _mute()
        place = f"{str(error.filename)[:200]}: " if error.filename is not None else ""
        return f"{place}cannot be written ({reason(error)}); make room, or write elsewhere"
    if isinstance(error, OSError) and error.filename is not None:  # a name that is too long, a loop of links, ...
        return f"{str(error.filename)[:200]}: {reason(error)}; choose another path"
    traceback.print_exception(error)
    return f"internal error, {describe(error)}; please report it with the lines above"


def _mute() -> None:
    """Drop what is left in the buffer: Python would try to write it once more at its end."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # a stream without a file, or none
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def load(options: argparse.Namespace) -> Callable[[argparse.Namespace], object]:
    """Return what a command runs; loading it takes the seconds that torch takes."""
    module = importlib.import_module(f"convsurgeon.cli.{COMMANDS[options.command][0]}")
    found: Callable[[argparse.Namespace], object] = getattr(module, f"run_{options.command}")
    return found


def _parser(wanted: str | None) -> argparse.ArgumentParser:
    parser = Command(prog="convsurgeon", description="Lighter CNNs from pretrained ones.")
    parser.add_argument("--version", action="version", version=f"convsurgeon {version()}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Command)
    for name, (_, words) in COMMANDS.items():
        if name == wanted:
            add(commands, name)
        else:
            commands.add_parser(name, help=words)
    return parser
