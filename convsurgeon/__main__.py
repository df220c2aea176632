"""`convsurgeon` and `python -m convsurgeon`."""

import logging
import sys

from convsurgeon.base import interrupt as ctrl_c


def main() -> int:
    """The console script's entry point; importing torch takes seconds, in which Ctrl-C is heard, too."""
    ctrl_c.leave_at_once()
    logging.getLogger("torch.utils.flop_counter").setLevel(logging.ERROR)  # it says what it does without triton
    from convsurgeon.cli.main import main as run

    try:
        try:
            ctrl_c.listen()
            code = run()
        finally:
            ctrl_c.ignore()
    except KeyboardInterrupt:
        ctrl_c.ignore()
        code = ctrl_c.tell()
    return code if code != ctrl_c.EXIT else ctrl_c.leave()


if __name__ == "__main__":
    sys.exit(main())
