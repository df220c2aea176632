"""The smallest model of every timm family that holds a dense k x k conv, counted on the meta device.

python -m tests.zoo.choose        # rewrites tests/zoo/timm.json, about ten minutes
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from tests.networks import import_timm

CHOSEN = Path(__file__).parent / "timm.json"


def dense(module: nn.Module) -> bool:
    """Whether a module is a Conv2d that sees more than one pixel and more than one channel."""
    return isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1 and module.groups < max(2, module.in_channels)


def smallest(names: list[str]) -> tuple[int, str] | None:
    """Parameters and name of the smallest model with a dense conv."""
    timm, found = import_timm(), []
    for name in names:
        try:
            with torch.device("meta"):
                model = timm.create_model(name, pretrained=False)
        except Exception:  # a factory that looks at values cannot run on the meta device
            continue
        if any(map(dense, model.modules())):
            found.append((sum(parameter.numel() for parameter in model.parameters()), name))
    return min(found, default=None)


def main() -> None:
    timm = import_timm()
    warnings.simplefilter("ignore")
    chosen = {}
    for family in tqdm(timm.list_modules()):
        if best := smallest(timm.list_models(module=family)):
            chosen[family] = best[1]
    CHOSEN.write_text(json.dumps(chosen, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
