"""Plan for a device from a desktop: measure there, convert here, hand on a bundle.

    python examples/for_a_device.py                             # plays both parts on this machine
    python examples/for_a_device.py --device pi4/device.json    # the second part; measured elsewhere

The folder `for_the_device/` needs only numpy and onnxruntime on the device: copy it there, run `python measure.py`,
bring `device.json` back.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from digits import accuracy, digit_net
from safetensors.torch import load_file

import convsurgeon as cs

HERE = Path(__file__).parent
FORMS = [cs.DepthwiseSeparable(rank=rank) for rank in (1, 2)] + [cs.Blueprint(rank=rank) for rank in (1, 2)]


def main() -> None:
    """Measure, convert to half of the dense network's time, and write the bundle."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", help="device.json, as measured on the device")
    parser.add_argument("--out", type=Path, default=Path("digits_bundle"))
    options = parser.parse_args()
    model = digit_net()
    model.load_state_dict(load_file(HERE / "digits.safetensors"))
    model.eval()
    images = torch.from_numpy(np.load(HERE / "digits_calibration.npy"))
    if options.device is None:
        cs.write_device_folder(model, images[:1], FORMS, "for_the_device", overwrite=True)
        subprocess.run([sys.executable, "measure.py"], cwd="for_the_device", check=True)
        options.device = "for_the_device/device.json"
    goal, runtime = cs.Budget(latency=0.5), cs.Runtime.load(options.device)
    result = cs.convert(model, images[:1], forms=FORMS, goal=goal, runtime=runtime, calibration=images)
    result = result.with_metric("accuracy", accuracy(model), accuracy(result.model))
    bundle = cs.export(result, options.out, overwrite=True, calibration=images)
    print(result.report.summary)
    print(bundle.sentence)


if __name__ == "__main__":
    main()
