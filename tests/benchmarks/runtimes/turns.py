"""What the drivers in Python share: their arguments, networks run in turns, and the answer. Needs nothing but numpy."""

import json
import sys
import time
from pathlib import Path

import numpy as np


def arguments():
    """Return the image, the networks' files and the number of rounds, as `other_runtimes` gives them."""
    image, shape, rounds, _, *files = sys.argv[1:]
    return np.fromfile(image, np.float32).reshape([int(one) for one in shape.split("x")]), files, int(rounds)


def answer(version, runs, rounds):
    """Write what every run returns, and its milliseconds of the processor in every round, to the file of the answer.

    A file, because packages that write to the standard output themselves cut long lines there.
    """
    outputs = [np.asarray(run()).astype(float).ravel().tolist() for run in runs]
    times = [[] for _ in runs]
    for turn in range(rounds):
        order = list(enumerate(runs))
        for number, run in order if turn % 2 == 0 else order[::-1]:
            started = time.process_time()
            run()
            times[number].append(1e3 * (time.process_time() - started))
    text = json.dumps({"version": version, "outputs": outputs, "times": times})
    Path(sys.argv[4]).write_text(text, encoding="utf-8")
