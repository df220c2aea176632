"""`python -m convsurgeon`."""

import sys

from convsurgeon.cli.main import main

sys.exit(main())
