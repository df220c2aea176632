"""Conversions in which a layer may get more expensive, to test full rank and other extremes."""

from __future__ import annotations

from typing import Any

import convsurgeon as cs


def convert_growing(
    model: Any, example: Any = None, *, forms: Any, policy: Any = None, calibration: Any = None, progress: bool = True
) -> cs.Result:
    """Convert with the first form that a site takes, whatever it costs."""
    plan = cs.plan(model, example, forms=forms, policy=policy, allow_growth=True)
    return cs.convert(model, example, forms=plan, calibration=calibration, progress=progress)
