"""Rewrite the last stage only: most of the parameters go, most of the accuracy stays without any calibration images.

    python examples/last_stage.py

The digit network's third stage holds 68 % of its parameters and 27 % of its work. A policy names it; everything else is
listed as left out, so the report says what was not touched and why.
"""

from __future__ import annotations

from pathlib import Path

import torch
from digits import accuracy, digit_net
from safetensors.torch import load_file

import convsurgeon as cs

HERE = Path(__file__).parent


def main() -> None:
    """Converts the last stage at ranks 1 to 3, from the weights alone, and prints one line for each."""
    model = digit_net()
    model.load_state_dict(load_file(HERE / "digits.safetensors"))
    model.eval()
    for rank in (1, 2, 3):
        form = cs.DepthwiseSeparable(rank=rank)
        result = cs.convert(
            model, torch.zeros(1, 1, 32, 32), forms=[form], policy=cs.select.named("stage3.*"), calibration=False
        )
        result = result.with_metric("accuracy", accuracy(model), accuracy(result.model))
        print(f"rank {rank}, {', '.join(result.changes)}")
        print(result.report.summary, end="\n\n")
    print(result.report.layers)


if __name__ == "__main__":
    main()
