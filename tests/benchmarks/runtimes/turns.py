"""Networks run in turns: what they answer, and the processor milliseconds of every round. Needs nothing but numpy."""

import time

import numpy as np


def timed(runs, rounds):
    """Outputs as flat lists, and each one's milliseconds of the processor in every round."""
    outputs = [np.asarray(run()).astype(float).ravel().tolist() for run in runs]
    times = [[] for _ in runs]
    for turn in range(rounds):
        order = list(enumerate(runs))
        for number, run in order if turn % 2 == 0 else order[::-1]:
            started = time.process_time()
            run()
            times[number].append(1e3 * (time.process_time() - started))
    return {"outputs": outputs, "times": times}
