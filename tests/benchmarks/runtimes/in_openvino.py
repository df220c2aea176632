"""OpenVINO, one stream and one thread. Arguments and answer as in `turns`."""

import openvino
from turns import answer, arguments

values, files, rounds = arguments()
core = openvino.Core()
how = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
models = [core.compile_model(core.read_model(path), "CPU", how) for path in files]
answer(openvino.__version__, [lambda model=model: model([values])[0] for model in models], rounds)
