"""`convsurgeon` and `python -m convsurgeon`."""

import sys

from convsurgeon.base import ctrl_c


def main() -> int:
    """The console script's entry point; importing torch takes seconds, in which Ctrl-C is heard, too."""
    ctrl_c.leave_at_once()
    from convsurgeon.cli.main import main as run

    try:
        try:
            ctrl_c.listen()
            return run()
        finally:
            ctrl_c.ignore()
    except KeyboardInterrupt:
        ctrl_c.ignore()
        return ctrl_c.tell()


if __name__ == "__main__":
    sys.exit(main())
