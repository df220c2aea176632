"""ncnn, through pnnx. Arguments and answer as in `turns`."""

import importlib.metadata
import shutil
import subprocess
import tempfile
from pathlib import Path

import ncnn
import numpy as np
import pnnx
from turns import answer, arguments

values, files, rounds = arguments()
program = str(getattr(pnnx, "EXEC_PATH", shutil.which("pnnx")))


def net(path, folder):
    own = Path(folder) / Path(path).name
    shutil.copy(path, own)
    size = f"inputshape=[{','.join(map(str, values.shape))}]"
    subprocess.run([program, own.name, size, "fp16=0"], cwd=folder, check=True, capture_output=True)
    made = ncnn.Net()
    made.opt.num_threads, made.opt.use_vulkan_compute = 1, False
    made.opt.use_fp16_packed = made.opt.use_fp16_storage = made.opt.use_fp16_arithmetic = False
    made.opt.use_bf16_storage = False
    assert made.load_param(str(own.with_suffix(".ncnn.param"))) == 0
    assert made.load_model(str(own.with_suffix(".ncnn.bin"))) == 0
    return made


def run(made):
    extractor = made.create_extractor()
    extractor.input("in0", ncnn.Mat(values[0]).clone())
    return np.array(extractor.extract("out0")[1])


with tempfile.TemporaryDirectory() as place:
    folders = [Path(place) / str(number) for number, _ in enumerate(files)]
    for folder in folders:
        folder.mkdir()
    nets = [net(path, folder) for path, folder in zip(files, folders, strict=True)]
    version = f"{importlib.metadata.version('ncnn')}, pnnx {importlib.metadata.version('pnnx')}"
    answer(version, [lambda made=made: run(made) for made in nets], rounds)
