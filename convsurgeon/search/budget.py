"""A budget: what the converted model may cost, as shares of the original or in units."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from convsurgeon.base.errors import BudgetError
from convsurgeon.base.precision import PRECISIONS, Precision

Amount = float | int | str

_LIMITS = ("macs", "params", "bytes", "latency", "lost")

_UNITS = {
    "macs": {"mac": 1.0, "macs": 1.0, "flop": 0.5, "flops": 0.5},
    "params": {"": 1.0},
    "bytes": {"b": 1.0},
    "latency": {"us": 1e-3, "ms": 1.0, "s": 1e3},
}
_PREFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}


@dataclass(frozen=True)
class Budget:
    """Limits that all hold at once.

    A limit is a share of the original (a float from 0 to 1), a number in the unit of its name (an int), or a text with
    a unit: `"20M"` parameters, `"1.5GMAC"`, `"300kB"`, `"12ms"`.

    Args:
        macs: of all convs and matrix products on the example.
        params: of the whole model.
        bytes: of the whole model's weights.
        latency: of the whole model, by a latency table; `"faster"` sets no limit: a layer changes only where
            that is faster, and takes the first candidate that is.
        lost: instead of a limit on cost: the cheapest model (in MACs) within this relative error of the output.
        precision: of the file that is to ship: milliseconds are measured in it, as shares of the dense network in it,
            and plans are judged with what it adds to their error. `"fp32"` or `"int8"`.

    Raises:
        BudgetError: no limit at all, or one that cannot be read; or no such precision.
    """

    macs: Amount | None = None
    params: Amount | None = None
    bytes: Amount | None = None
    latency: Amount | None = None
    lost: float | None = None
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        check_precision(self.precision)
        given = {name: getattr(self, name) for name in _LIMITS}
        given = {name: value for name, value in given.items() if value is not None}
        if not given:
            raise BudgetError("budget: no limit; pass for example Budget(macs=0.5)")
        if self.lost is not None and len(given) > 1:
            raise BudgetError("budget: lost asks for the cheapest model and goes with no other limit; leave one out")
        for name, value in given.items():
            if (name, value) != ("latency", "faster"):
                _amount(name, value)

    @staticmethod
    def parse(text: str) -> Budget:
        """Reads `macs=0.5,params=20M`, or `latency=0.5,precision=int8`.

        Raises:
            BudgetError: an unknown name, a name without a value, or a value that cannot be read.
        """
        known = [item.name for item in fields(Budget)]
        values: dict[str, Any] = {}
        for part in filter(None, (piece.strip() for piece in text.split(","))):
            name, equals, value = (piece.strip() for piece in part.partition("="))
            if not equals or name not in known or name in values:
                raise BudgetError(f"budget: cannot read {part!r}; write macs=0.5, with one of {', '.join(known)}")
            values[name] = _number(value) if name in _LIMITS else value
        return Budget(**values)

    def limits(self, whole: Callable[[str], float]) -> dict[str, float]:
        """Name -> limit in the name's unit (MACs, parameters, bytes, milliseconds), `lost` and "faster" left out.

        Args:
            whole: what the original has of each.
        """
        found = {}
        for name in ("macs", "params", "bytes", "latency"):
            value = getattr(self, name)
            if value is not None and value != "faster":
                share, amount = _amount(name, value)
                found[name] = amount * whole(name) if share else amount
        return found


def check_precision(precision: str) -> None:
    """Refuses what no plan is made for.

    Raises:
        BudgetError: it is none of the precisions.
    """
    if precision not in PRECISIONS:
        raise BudgetError(f"budget: precision={precision!r}; pass one of {', '.join(PRECISIONS)}")


def _number(text: str) -> Amount:
    try:
        return int(text) if re.fullmatch(r"\d+", text) else float(text)
    except ValueError:
        return text


def _amount(name: str, value: Amount) -> tuple[bool, float]:
    """Whether a limit is a share, and its number in the unit of its name."""
    if isinstance(value, str):
        return False, _with_unit(name, value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise BudgetError(f"budget: {name}={value!r} is no limit; pass a share such as 0.5, or a number with a unit")
    if isinstance(value, float) and value > 1:
        raise BudgetError(f"budget: {name}={value} is more than all of it; pass a share up to 1.0, or a whole number")
    return isinstance(value, float), float(value)


def _with_unit(name: str, text: str) -> float:
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-zA-Z]*)\s*", text)
    units = _UNITS.get(name, {})
    if match:
        number, word = float(match[1]), match[2].lower()
        for unit, scale in units.items():
            prefix = word.removesuffix(unit) if unit else word
            if word.endswith(unit) and prefix in (_PREFIXES if name != "latency" else {"": 1.0}):
                return number * _PREFIXES[prefix] * scale
    examples = {"macs": "1.5GMAC", "params": "20M", "bytes": "300kB", "latency": "12ms"}
    hint = f"a share such as 0.5 or {examples[name]}" if name in examples else "a number such as 0.05"
    raise BudgetError(f"budget: {name}={text!r} cannot be read; pass {hint}")
