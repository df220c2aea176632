"""`convsurgeon` and `python -m convsurgeon`: the command line, and Ctrl-C before it is loaded."""

import logging
import os
import signal
import sys
from typing import Any

from convsurgeon import __version__


def main() -> int:
    """Run the command line and return its exit code."""
    if sys.argv[1:] == ["--version"]:
        print(f"convsurgeon {__version__}")
        return 0
    signal.signal(signal.SIGINT, _leave)  # importing torch takes seconds, and nothing is open yet
    logging.getLogger("torch.utils.flop_counter").setLevel(logging.ERROR)  # it says what it does without triton
    from convsurgeon.cli.main import INTERRUPTED, parse, run

    code = run(parse(sys.argv[1:]), lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if code == INTERRUPTED:  # Python would end itself by the signal where it hit code made from text (dataclasses)
        sys.stdout.flush()
        os._exit(code)
    return code


def _leave(*_: Any) -> None:
    os.write(2, b"convsurgeon: interrupted; nothing was written\n")
    os._exit(130)


if __name__ == "__main__":
    sys.exit(main())
