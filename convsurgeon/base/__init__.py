"""What knows nothing of networks: errors, files that appear whole, tables, and the processes of a run."""

from convsurgeon.base import errors as errors
