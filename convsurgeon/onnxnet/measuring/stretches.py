"""Stretches of networks, each timed alone and once in a pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .engine import SMALLEST, Engine
from .rounds import low, make_feeds, time_alone

_SECONDS = 0.05
"""Spent on each stretch."""
_LEAST = 0.05
"""Share of its time that a stretch keeps at least when what every run takes is taken off."""


class Stretches:
    """What stretches take, as far as they have been timed."""

    def __init__(self, folder: Path, manifest: dict[str, Any], engine: Engine) -> None:
        self._folder, self._inputs, self._engine = folder, manifest.get("stretches", {}), engine
        self._times: dict[str, float] = {}

    def share(self, network: dict[str, Any], total: float) -> list[list[Any]]:
        """Return [name, operator, ms] of every stretch of a network, which share what the whole takes."""
        empty = self._ms("", SMALLEST, {"x": np.zeros(1, np.float32)})
        alone = {}
        for name, file in network["stretches"].items():
            ms = self._ms(file, self._folder / file, make_feeds(self._inputs[file]))
            alone[name] = max(ms - empty, _LEAST * ms)
        scale = total / sum(alone.values())
        return [[name, "Conv", scale * ms] for name, ms in alone.items()]

    def _ms(self, name: str, model: Path | bytes, feeds: dict[str, Any]) -> float:
        if name not in self._times:
            times = time_alone(self._engine.open(model), feeds, self._engine.clock(), _SECONDS)
            self._times[name] = float(low(times))
        return self._times[name]
