"""What a converted network may lose: so much of the user's own measure, or such an error of its output."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from convsurgeon.base import processes as world
from convsurgeon.base.errors import BudgetError, CalibrationError
from convsurgeon.calibration.dataset import first_batches
from convsurgeon.fit.residual import added_share
from convsurgeon.graph.example import Example

_LOOKED_AT = 16

Metric = Callable[[nn.Module], float]

ALLOWED = 0.03
"""Relative error of the output that the default allows, on held-back images and with weights fitted to a part of them.

CIFAR ResNet-20 (91.63 %), seeds 10 and 11: plans of 0.034 to 0.039 on trial end at 91.2 to 91.7, of 0.071 to 0.073 at
90.5 to 91.1."""

ALLOWED_ADDED = 0.005
"""The same of image to image, where it counts against what the network adds to its input.

Reckoned, not measured: a denoiser at sigma 25 (30.4 dB) loses 0.2 dB by an error of 0.0045 of the noise that it
removes, if that error has nothing to do with the one it makes already; super-resolution x2 loses as much by 0.03."""


@dataclass(frozen=True)
class Limit:
    """A figure of a model and how far it may be from the original's.

    Args:
        name: of the figure.
        before: the original's.
        most: that may be lost of it.
        better: `"higher"` or `"lower"` is better.
        scale: share of the output's variance that its error counts against, see `fit.added`.
        metric: the user's, or none: the figure is the error of the output then.
    """

    name: str
    before: float
    most: float
    better: str
    scale: float = 1.0
    metric: tuple[Metric, ...] = ()

    def keeps(self, value: float) -> bool:
        """Whether a figure is good enough."""
        return self._lost(value) <= self.most + 1e-12

    def spent(self, value: float) -> float:
        """The share of what may be lost that a figure has lost, below 0 where it is better than before."""
        lost = self._lost(value)
        return lost / self.most if self.most > 0 else math.inf if lost > 0 else 0.0

    def _lost(self, value: float) -> float:
        return self.before - value if self.better == "higher" else value - self.before

    def __str__(self) -> str:
        if self.metric:
            return f"{self.most:.3g} of {self.name} ({self.before:.4g})"
        return f"an error of {self.most:.3g} of {'the output' if self.scale == 1 else 'what is added to the input'}"


def limit_of(
    model: nn.Module, held_back: Sequence[Example], metric: Metric | None, within: float | str | None, better: str
) -> Limit:
    """Reads what a user says of a limit.

    Args:
        model: the original, which the metric is asked about once.
        held_back: images to judge by.
        metric: model -> number, or none for the relative error of the output.
        within: most to lose, in the metric's unit, or as a share of the original's: `"1%"`; `ALLOWED` if not given.
        better: `"higher"` or `"lower"`: which metric is the better one.

    Raises:
        BudgetError: a metric without a limit, a limit that is none, or a metric that gives no number.
    """
    if better not in ("higher", "lower"):
        raise BudgetError(f"better={better!r}: pass higher or lower, whichever is better of the metric")
    if metric is None:
        scale = added_share(model, first_batches(held_back, _LOOKED_AT))
        most = ALLOWED if scale == 1 else ALLOWED_ADDED
        return Limit("output error", 0.0, most if within is None else _amount(within, 1.0), "lower", scale)
    if within is None:
        raise BudgetError("metric: say how much of it may be lost, for example within=1.0, or within='1%'")
    before = world.shared(lambda: measured(metric, model))
    return Limit(getattr(metric, "__name__", "metric"), before, _amount(within, abs(before)), better, metric=(metric,))


def check_within(budget: object, images: bool) -> None:
    """Refuses a limit that does not go with what else was asked for.

    Raises:
        BudgetError: a budget.
        CalibrationError: weights alone were asked for.
    """
    if budget is not None:
        raise BudgetError("within: asks for the fastest network and goes with no budget; leave one of them out")
    if not images:
        raise CalibrationError("within: plans are judged with fitted weights; pass calibration, or leave it out")


def measured(metric: Metric, model: nn.Module) -> float:
    """The user's figure of a model.

    Raises:
        BudgetError: it is no finite number.
    """
    value = metric(model)
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise BudgetError(f"metric: gives a {type(value).__name__}; it takes a model and gives a number") from error
    if not math.isfinite(number):
        raise BudgetError(f"metric: gives {number}; it takes a model and gives a finite number")
    return number


def _amount(within: float | str, whole: float) -> float:
    """Most to lose, as a number."""
    text = str(within).strip()
    try:
        number = float(text.removesuffix("%")) * (whole / 100 if text.endswith("%") else 1.0)
    except ValueError:
        number = math.nan
    if isinstance(within, bool) or not math.isfinite(number) or number < 0:
        raise BudgetError(f"within={within!r}: is no amount; pass a number such as 1.0, or a share such as '1%'")
    return number
