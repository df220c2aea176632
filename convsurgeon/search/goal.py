"""What a user asks for: a limit on cost (`Budget`), or the fastest network that loses little (`Within`)."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields

from torch import nn

from convsurgeon.base.arrays import Array
from convsurgeon.base.errors import BudgetError
from convsurgeon.distill.loss import OutputJudge
from convsurgeon.distill.record import Score
from convsurgeon.fit.fidelity import DECIDES, added_share
from convsurgeon.graph.decisions import Decisions
from convsurgeon.graph.outputs import Answer
from convsurgeon.search.metric import Metric, measure

Amount = float | int | str

DEFAULT_ERROR = 0.003
"""Relative error of the output on held-out images that the default allows."""

DEFAULT_ERROR_CLASSES = 0.025
"""The same of scores over classes, one for each image, of which only the largest matters."""

DEFAULT_ERROR_ADDED = 0.002
"""The same, relative to what the network adds, where that is next to nothing beside its input; between the two where it
is more."""

DEFAULT_DECISIONS = 0.0075
"""Share of right decisions that the default may lose, by the estimate of `graph.decisions`."""

DEFAULT_LOSS = {"higher": 0.003, "lower": 0.02}
"""Share of the original's own metric that may be lost where no tolerance is given, by which values are better."""

LARGE = {"higher": 0.25, "lower": 1.0}
"""Share of the metric from which on a tolerance that is a bare number is taken for a mistake in its unit."""

REVERSED = 0.5
"""Share of the metric by which no approximation of a network is better than it: the user's `better` is the other."""

_PREFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
_UNITS = {
    "macs": {"mac": 1.0, "macs": 1.0, "flop": 0.5, "flops": 0.5},
    "params": {"": 1.0},
    "bytes": {"b": 1.0},
    "latency": {"us": 1e-3, "ms": 1.0, "s": 1e3},
}
_EXAMPLES = {"macs": "1.5GMAC", "params": "20M", "bytes": "300kB", "latency": "12ms"}


@dataclass(frozen=True)
class Budget:
    """Limits on the cost of the converted model, which all hold at once.

    A limit is a share of the original (a float from 0 to 1), a number in the unit of its name (an int), or a text with
    a unit: `"20M"` parameters, `"1.5GMAC"`, `"300kB"`, `"12ms"`.

    Args:
        macs: multiply-accumulates of all convs and matrix products on the example.
        params: parameters of the whole model.
        bytes: bytes of the whole model's weights.
        latency: milliseconds of the whole model, in the runtime and precision of `Runtime`.

    Raises:
        BudgetError: there is no limit, or one that cannot be read.
    """

    macs: Amount | None = None
    params: Amount | None = None
    bytes: Amount | None = None
    latency: Amount | None = None

    def __post_init__(self) -> None:
        limits = {name: value for name, value in vars(self).items() if value is not None}
        if not limits:
            raise BudgetError("budget: it sets no limit; pass for example Budget(macs=0.5)")
        for name, value in limits.items():
            _read_amount(name, value)

    @staticmethod
    def parse(text: str) -> Budget:
        """Read `macs=0.5,params=20M`."""
        known = [item.name for item in fields(Budget)]
        values: dict[str, Amount] = {}
        for part in filter(None, (piece.strip() for piece in text.split(","))):
            name, equals, value = (piece.strip() for piece in part.partition("="))
            if not equals or name not in known or name in values:
                raise BudgetError(f"budget: cannot read {part!r}; write macs=0.5, with one of {', '.join(known)}")
            values[name] = _number_or_text(value)
        return Budget(**values)

    def limits(self, whole: Callable[[str], float]) -> dict[str, float]:
        """Return name -> limit in the name's unit (MACs, parameters, bytes, milliseconds)."""
        found = {}
        for name, value in vars(self).items():
            if value is not None:
                is_share, amount = _read_amount(name, value)
                found[name] = amount * whole(name) if is_share else amount
        return found


@dataclass(frozen=True)
class Within:
    """The fastest network that loses at most so much.

    Args:
        tolerance: most that may be lost of the metric, in its unit (`1.0`) or as a share of the original's (`"1%"`).
            Without a metric it is the relative error of the output on held-out images; for an image-to-image network
            the error relative to what the network adds to its input. None is the default's tolerance: of a metric
            0.3 % of the original's where higher is better, 2 % where lower is.
        metric: the user's own measure, model -> number. It decides which plan is taken and which file is recommended.
            It may give one number for each test image instead: then their mean counts, and its standard error is known.
        better: whether a `"higher"` or a `"lower"` metric is better.

    Raises:
        BudgetError: the tolerance cannot be read.
    """

    tolerance: float | str | None = None
    metric: Metric | None = None
    better: str = "higher"
    before: float | None = field(default=None, repr=False)
    """The original's metric, 0 for an error; filled in once, by `resolve`."""
    scale: float = field(default=1.0, repr=False)
    """The share of the output's variance that an error is relative to; the search fills it in."""
    decisions: float = field(default=math.inf, repr=False)
    """The share of right decisions that may be lost; the search fills it in."""
    usual: bool = field(default=False, repr=False)
    """Whether the tolerance is the default's; the search fills it in."""
    images: dict[float, Array] = field(default_factory=dict, repr=False, compare=False)
    """What a metric gave for each image, by the mean; filled in whenever it is asked."""

    def __post_init__(self) -> None:
        if self.better not in ("higher", "lower"):
            raise BudgetError(f"within: better={self.better!r}; pass 'higher' or 'lower'")
        if self.metric is not None and not callable(self.metric):
            raise BudgetError(f"within: metric={self.metric!r} is not a function; pass one of a model")
        if self.tolerance is not None:
            most = _read_tolerance(self.tolerance, 1.0)
            if self.metric is None and most >= 1:
                raise BudgetError(
                    f"within: {self.tolerance} without a metric is an error as large as the output itself; pass "
                    "metric= (--metric), or an error such as 0.01"
                )

    def resolve(self, model: nn.Module, judge: OutputJudge | None = None) -> Within:
        """Return the goal with its tolerance as a number, and the original's metric measured once.

        Without a metric the tolerance depends on what the original gives for the images of a judge.
        """
        if self.before is not None:
            return self
        if self.metric is not None:
            before = measure(self.metric, model, self.images)
            return dataclasses.replace(self, tolerance=self._allow(before), before=before)
        batches, answers = ([], []) if judge is None else (judge.batches, judge.answers)
        scale = added_share(batches, answers)
        filled = dataclasses.replace(self, better="lower", scale=scale, before=0.0)
        if self.tolerance is not None:
            return dataclasses.replace(filled, tolerance=_read_tolerance(self.tolerance, 1.0))
        usual = DEFAULT_ERROR_CLASSES if _classifies(answers) else DEFAULT_ERROR
        tolerance = DEFAULT_ERROR_ADDED + (usual - DEFAULT_ERROR_ADDED) * scale**2
        decisions = DEFAULT_DECISIONS if scale > DECIDES else math.inf
        return dataclasses.replace(filled, tolerance=tolerance, decisions=decisions, usual=True)

    def _allow(self, before: float) -> float:
        """Return the most that may be lost of a metric; refuse what was most likely meant in another unit."""
        whole, given = abs(before), self.tolerance
        if given is None:
            if not whole:
                raise BudgetError(
                    f"within: {self.name} of the original is 0, so no share of it can be allowed; say how much may be "
                    f"lost, for example Within(0.5, metric={self.name})"
                )
            return DEFAULT_LOSS[self.better] * whole
        most = _read_tolerance(given, whole)
        if not str(given).strip().endswith("%") and most >= LARGE[self.better] * whole > 0:
            raise BudgetError(
                f"within: {given} is {most / whole:.0%} of {self.name}, which is {before:.4g} for the original; write "
                f"{most / 100:g} or '{most:g}%' if a hundredth was meant, '{100 * most / whole:.0f}%' if not"
            )
        return most

    @property
    def name(self) -> str:
        """The name of the figure."""
        return "output error" if self.metric is None else getattr(self.metric, "__name__", "metric")

    @property
    def most(self) -> float:
        """The resolved tolerance."""
        assert isinstance(self.tolerance, float)
        return self.tolerance

    def value(self, error: float, lost: float) -> float:
        """Return the figure of a network without a metric: its error, or what it loses of decisions if that is more."""
        return max(error / self.scale, self.most * lost / self.decisions)

    def cautious(self, score: Score) -> float:
        """Return the figure of a network by held-out images: by default one standard error worse than measured."""
        if not self.usual:
            return self.value(score.error, score.lost)
        return self.value(score.error + score.doubt[0], score.lost + score.doubt[1])

    def ask(self, model: nn.Module) -> float:
        """Return what the metric gives for a network that approximates the original."""
        assert self.metric is not None
        assert self.before is not None
        value = measure(self.metric, model, self.images)
        if self.lost(value) < -REVERSED * abs(self.before):
            other = "lower" if self.better == "higher" else "higher"
            raise BudgetError(
                f"within: {self.name} {self.before:.4g} -> {value:.4g} would make an approximation far better than the "
                f"original; if {other} is better, pass better={other!r} (--better {other})"
            )
        return value

    def doubt(self, value: float) -> float | None:
        """Return the standard error of a figure's difference from the original's; None without values of each image."""
        pair = [self.images.get(one) for one in (self.before, value) if one is not None]
        if len(pair) < 2 or pair[0] is None or pair[1] is None or pair[0].shape != pair[1].shape:
            return None
        apart = pair[1] - pair[0]
        return float(apart.std(ddof=1) / math.sqrt(len(apart)))

    def keeps(self, value: float) -> bool:
        """Return whether a figure is good enough."""
        return self.lost(value) <= self.most + 1e-12

    def spent(self, value: float) -> float:
        """Return the share of the tolerance that a figure has used up, below 0 where it is better than before."""
        lost = self.lost(value)
        return lost / self.most if self.most > 0 else math.inf if lost > 0 else 0.0

    def lost(self, value: float) -> float:
        """Return how much worse a figure is than the original's."""
        assert self.before is not None
        return self.before - value if self.better == "higher" else value - self.before

    def __str__(self) -> str:
        if self.before is None:
            return f"{'the default tolerance' if self.tolerance is None else self.tolerance} of {self.name}"
        if self.metric is not None:
            sign, word = (-1, "least") if self.better == "higher" else (1, "most")
            return f"{self.name} of at {word} {self.before + sign * self.most:.5g}"
        whole = "the output" if self.scale > DECIDES else "what is added to the input"
        text = f"an error of {self.most:.2g} of {whole}"
        return text if self.decisions == math.inf else f"{text} and {self.decisions:.2%} of right decisions"


def _classifies(answers: Sequence[Answer]) -> bool:
    """Return whether a model gives scores over classes, one vector for each image."""
    found = Decisions()
    for one in answers:
        if any(scores.dim() == 4 for scores in one.judged):
            return False
        found.add(one.judged, one.judged)
    return found.agreement is not None


Goal = Budget | Within


def _number_or_text(text: str) -> Amount:
    try:
        return int(text) if re.fullmatch(r"\d+", text) else float(text)
    except ValueError:
        return text


def _read_amount(name: str, value: Amount) -> tuple[bool, float]:
    """Return whether a limit is a share, and its number in the unit of its name."""
    if isinstance(value, str):
        return False, _read_unit(name, value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise BudgetError(f"budget: {name}={value!r} is not a limit; pass a share such as 0.5, or a number with a unit")
    if isinstance(value, float) and value > 1:
        raise BudgetError(f"budget: {name}={value} is more than all of it; pass a share up to 1.0, or a whole number")
    return isinstance(value, float), float(value)


def _read_unit(name: str, text: str) -> float:
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-zA-Z]*)\s*", text)
    if match:
        number, word = float(match[1]), match[2].lower()
        for unit, scale in _UNITS[name].items():
            prefix = word.removesuffix(unit) if unit else word
            if word.endswith(unit) and prefix in (_PREFIXES if name != "latency" else {""}):
                return number * _PREFIXES[prefix] * scale
    raise BudgetError(f"budget: {name}={text!r} cannot be read; pass a share such as 0.5 or {_EXAMPLES[name]}")


def _read_tolerance(tolerance: float | str, whole: float) -> float:
    """Return the most that may be lost, as a number."""
    text = str(tolerance).strip()
    try:
        number = float(text.removesuffix("%")) * (whole / 100 if text.endswith("%") else 1.0)
    except ValueError:
        number = math.nan
    if isinstance(tolerance, bool) or not math.isfinite(number) or number < 0:
        raise BudgetError(f"within: {tolerance!r} is not an amount; pass a number such as 1.0, or a share such as '1%'")
    return number
