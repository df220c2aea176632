"""OpenVINO, one stream and one thread. Arguments as `other_runtimes` gives them; prints one line of JSON."""

import json
import sys

import numpy as np
import openvino
from turns import timed

image, shape, rounds = sys.argv[1], [int(one) for one in sys.argv[2].split("x")], int(sys.argv[3])
values = np.fromfile(image, np.float32).reshape(shape)
core = openvino.Core()
how = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
models = [core.compile_model(core.read_model(path), "CPU", how) for path in sys.argv[4:]]
runs = [lambda model=model: model([values])[0] for model in models]
print(json.dumps({"version": openvino.__version__, **timed(runs, rounds)}))
