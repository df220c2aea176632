"""LiteRT (TensorFlow Lite) with XNNPACK, through onnx2tf. Arguments and answer as in `turns`."""

import contextlib
import importlib.metadata
import os
import sys
import tempfile
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import numpy as np
import onnx2tf
from ai_edge_litert.interpreter import Interpreter
from turns import answer, arguments

values, files, rounds = arguments()
values = np.ascontiguousarray(values.transpose(0, 2, 3, 1))


def interpreter(path, folder):
    with contextlib.redirect_stdout(sys.stderr):
        onnx2tf.convert(input_onnx_file_path=path, output_folder_path=str(folder), non_verbose=True)
    made = Interpreter(str(next(Path(folder).glob("*float32.tflite"))), num_threads=1)
    made.allocate_tensors()
    return made


def run(made):
    made.set_tensor(made.get_input_details()[0]["index"], values)
    made.invoke()
    return made.get_tensor(made.get_output_details()[0]["index"])


with tempfile.TemporaryDirectory() as place:
    os.chdir(place)  # where onnx2tf looks for images to check itself with before it fetches some
    np.save("calibration_image_sample_data_20x128x128x3_float32", np.random.rand(20, 128, 128, 3).astype(np.float32))
    made = [interpreter(path, Path(place) / str(number)) for number, path in enumerate(files)]
    version = f"{importlib.metadata.version('ai-edge-litert')}, onnx2tf {importlib.metadata.version('onnx2tf')}"
    answer(version, [lambda one=one: run(one) for one in made], rounds)
