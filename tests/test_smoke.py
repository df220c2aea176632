"""The main road on the network that ships in `examples/`: convert it, keep its accuracy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import convsurgeon as cs
from examples import digits

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.mark.usefixtures("all_epochs")
def test_digits_at_rank_one_keep_99_percent() -> None:
    model = digits.digit_net().eval()
    model.load_state_dict(load_file(EXAMPLES / "digits.safetensors"))
    images = torch.from_numpy(np.load(EXAMPLES / "digits_calibration.npy"))
    result = cs.convert(model, images[:1], forms=[cs.DepthwiseSeparable(rank=1)], calibration=images, progress=False)
    assert len(result.changes) == 5
    assert digits.accuracy(result.model) >= 99.0
