"""`python -m convsurgeon`."""

import sys

from convsurgeon.cli import main

sys.exit(main())
