"""Questions that take minutes: how well, how fast, how small. `python -m tests.benchmarks --list` names them."""
