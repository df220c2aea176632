"""Every real network at ranks 1 to 4 and 9, both forms, weights from the SVD alone: metric and MACs.

python tests/benchmarks/bench_ranks.py [resnet20 resnet56 dncnn vdsr]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from tabulate import tabulate
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import convsurgeon as cs
from tests.networks import pretrained
from tests.test_pretrained import CASES


def main(names: list[str]) -> None:
    rows = []
    for name in tqdm(names, leave=False, disable=None):
        shape, metric, _ = CASES[name]
        model, x = pretrained(name), torch.randn(shape, generator=torch.Generator().manual_seed(0))
        before = metric(model)
        for kind in (cs.DepthwiseSeparable, cs.Blueprint):
            for rank in (1, 2, 3, 4, 9):
                result = cs.convert(model, x, forms=[kind(rank=rank)], allow_growth=True, calibration=False)
                share = result.report.after.macs / result.report.before.macs
                rows.append((name, kind.word, rank, share, before, metric(result.model)))
    print(
        tabulate(
            rows, ["network", "form", "rank", "MACs", "before", "after"], floatfmt=("", "", "", ".3f", ".2f", ".2f")
        )
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=list(CASES), choices=list(CASES))
    main(parser.parse_args().networks)
