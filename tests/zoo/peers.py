"""The same question put to other tools: does the model survive, and is its output right where nothing is dropped."""

from __future__ import annotations

import copy
import time
from typing import Any

import torch
from torch import nn

from convsurgeon.base.errors import describe
from tests.zoo.cases import Case, ready
from tests.zoo.check import HEARD, ROUNDING, Row, difference
from tests.zoo.choose import dense


def bsconv(model: nn.Module) -> tuple[nn.Module, int]:
    """bsconv's replacer on a copy: rank 1 with new random weights; there is no other rank. 3x3 and 5x5 only."""
    from bsconv.pytorch import BSConvU_Replacer  # type: ignore[import-untyped]

    replaced: nn.Module = BSConvU_Replacer().apply(copy.deepcopy(model))
    kinds = [type(module).__name__ for module in replaced.modules()]
    return replaced, sum(kind == "BSConvU" for kind in kinds)


def tensorly(model: nn.Module) -> tuple[nn.Module, int]:
    """tensorly-torch's `from_conv` on a copy, Tucker at the full rank of every mode, one conv after the other."""
    from tltorch import FactorizedConv  # type: ignore[import-untyped]

    copied, count = copy.deepcopy(model), 0
    for name, conv in [(name, module) for name, module in copied.named_modules() if name and dense(module)]:
        parent, _, attribute = name.rpartition(".")
        options: dict[str, Any] = {"factorization": "tucker", "rank": tuple(conv.weight.shape)}
        new = FactorizedConv.from_conv(conv, implementation="factorized", decompose_weights=True, **options)
        setattr(copied.get_submodule(parent), attribute, new)
        count += 1
    return copied, count


PEERS = {"bsconv": bsconv, "tensorly-torch": tensorly}


def check_peer(case: Case, peer: str) -> Row:
    """One row: survived or why not, how many convs it touched, and how far the output is off."""
    row: Row = {"case": case.key, "source": case.source, "family": case.family, "name": case.name, "peer": peer}
    model, example = ready(case)
    start = time.perf_counter()
    row |= {"dense": sum(map(dense, model.modules())), "converted": 0}
    try:
        with torch.no_grad():
            converted, row["converted"] = PEERS[peer](model)
        row["error"] = difference(model, converted.eval(), example)
    except Exception as error:  # whatever it raises
        return row | {"status": f"crash: {describe(error)[:140]}"}
    right = row["error"] <= ROUNDING
    row["status"] = "ok" if right and row["converted"] else ("nothing converted" if right else "another output")
    return row | {"seconds": round(time.perf_counter() - start, 1), "heard": row["error"] > HEARD}
