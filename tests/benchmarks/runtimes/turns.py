"""Networks run in turns: what they answer, and the milliseconds of the median round. Needs nothing but numpy."""

import time

import numpy as np


def timed(runs, rounds):
    """Outputs as flat lists, median milliseconds, and the median over rounds of the first one's time over each."""
    outputs = [np.asarray(run()).astype(float).ravel().tolist() for run in runs]
    times = [[] for _ in runs]
    for turn in range(rounds):
        order = list(enumerate(runs))
        for number, run in order if turn % 2 == 0 else order[::-1]:
            started = time.perf_counter()
            run()
            times[number].append(1e3 * (time.perf_counter() - started))
    ratios = [float(np.median(np.array(times[0]) / np.array(own))) for own in times]
    return {"outputs": outputs, "ms": [float(np.median(own)) for own in times], "speedup": ratios}
