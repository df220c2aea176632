"""ncnn, through pnnx. Arguments as `other_runtimes` gives them; prints one line of JSON."""

import importlib.metadata
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import ncnn
import numpy as np
import pnnx
from turns import timed

image, shape, rounds = sys.argv[1], [int(one) for one in sys.argv[2].split("x")], int(sys.argv[3])
values = np.fromfile(image, np.float32).reshape(shape)
program = str(getattr(pnnx, "EXEC_PATH", shutil.which("pnnx")))


def net(path, folder):
    own = Path(folder) / Path(path).name
    shutil.copy(path, own)
    size = f"inputshape=[{','.join(map(str, shape))}]"
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
    folders = [Path(place) / str(number) for number, _ in enumerate(sys.argv[4:])]
    for folder in folders:
        folder.mkdir()
    nets = [net(path, folder) for path, folder in zip(sys.argv[4:], folders, strict=True)]
    runs = [lambda made=made: run(made) for made in nets]
    version = f"{importlib.metadata.version('ncnn')}, pnnx {importlib.metadata.version('pnnx')}"
    print(json.dumps({"version": version, **timed(runs, rounds)}))
