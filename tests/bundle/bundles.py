"""A small converted network and its bundle, as the bundle's tests want them; run as a script, exports under fire.

    python -m tests.bundle.bundles FOLDER

forks a child that exports into FOLDER/out whenever a line with a rank comes in, prints its process id, and waits for
it: everything is imported once, and a kill hits nothing but the export.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import convsurgeon as cs
from tests.onnx.small import Net, net

SIZE = 12


def images(count: int = 40) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def converted(rank: int = 1, model: Net | None = None) -> cs.Result:
    """The dense conv of the small net, rewritten; weights alone, so that it takes no time."""
    subject = (model or net()).eval()
    return cs.convert(subject, images(1), forms=[cs.DepthwiseSeparable(rank=rank)], calibration=False)


export = partial(cs.export, pairs=0, progress=False)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    results = {rank: converted(rank) for rank in (1, 2)}
    print("ready", flush=True)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            made: Any = export(results[int(line)], folder / "out", overwrite=True)
            os._exit(0 if made.converted.parity.passed else 1)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print("ended", os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
