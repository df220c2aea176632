"""Which sites may be touched: predicates over a `Site`, combined with `&`, `|` and `~`.

A policy prints as the text it parses from: `parse_policy(str(policy)) == policy`. Any function of a
site is a policy too.

    kernel_size(3, 5) & min_channels(32) & ~named(conv1, layer4.*)
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from convsurgeon.base.errors import PolicyError, nearest
from convsurgeon.graph.site import Site

Predicate = Callable[[Site], bool]


class Policy:
    """A predicate over a site. Subclasses are frozen dataclasses with `__call__` and `__str__`."""

    def __call__(self, site: Site) -> bool:
        """Whether the site may be touched."""
        raise NotImplementedError

    def __and__(self, other: Predicate) -> Policy:
        return _All.of(self, as_policy(other))

    def __rand__(self, other: Predicate) -> Policy:
        return _All.of(as_policy(other), self)

    def __or__(self, other: Predicate) -> Policy:
        return _Any.of(self, as_policy(other))

    def __ror__(self, other: Predicate) -> Policy:
        return _Any.of(as_policy(other), self)

    def __invert__(self) -> Policy:
        return self.inner if isinstance(self, _Not) else _Not(self)

    def parts(self) -> Iterator[tuple[Policy, bool]]:
        """Every leaf of the expression, with whether it stands under an even number of `~`."""
        yield self, True


def as_policy(value: Predicate) -> Policy:
    """A policy from a policy or any function of a site.

    Raises:
        PolicyError: the value cannot be called.
    """
    if isinstance(value, Policy):
        return value
    if not callable(value):
        raise PolicyError(f"policy: expected a policy or a function of a site, got {type(value).__name__}")
    return _Function(value)


@dataclass(frozen=True)
class _Joined(Policy):
    """Two or more policies under one sign, nests of the same sign flattened."""

    members: tuple[Policy, ...]

    @classmethod
    def of(cls, *policies: Policy) -> Policy:
        return cls(tuple(m for policy in policies for m in (policy.members if isinstance(policy, cls) else (policy,))))

    def parts(self) -> Iterator[tuple[Policy, bool]]:
        for member in self.members:
            yield from member.parts()


class _All(_Joined):
    def __call__(self, site: Site) -> bool:
        return all(member(site) for member in self.members)

    def __str__(self) -> str:
        return " & ".join(f"({member})" if isinstance(member, _Any) else str(member) for member in self.members)


class _Any(_Joined):
    def __call__(self, site: Site) -> bool:
        return any(member(site) for member in self.members)

    def __str__(self) -> str:
        return " | ".join(map(str, self.members))


@dataclass(frozen=True)
class _Not(Policy):
    inner: Policy

    def __call__(self, site: Site) -> bool:
        return not self.inner(site)

    def __str__(self) -> str:
        return f"~({self.inner})" if isinstance(self.inner, _Joined) else f"~{self.inner}"

    def parts(self) -> Iterator[tuple[Policy, bool]]:
        yield from ((leaf, not positive) for leaf, positive in self.inner.parts())


@dataclass(frozen=True)
class _Function(Policy):
    function: Predicate

    def __call__(self, site: Site) -> bool:
        return bool(self.function(site))

    def __str__(self) -> str:
        return getattr(self.function, "__name__", type(self.function).__name__)


@dataclass(frozen=True)
class _Test(Policy):
    """A named test with its values, as they are written."""

    name: str
    values: tuple[Any, ...]

    def __call__(self, site: Site) -> bool:
        return _MEANINGS[self.name](site, self.values)

    def __str__(self) -> str:
        return f"{self.name}({', '.join(map(_written, self.values))})"


def everything() -> Policy:
    """Every site."""
    return _Test("everything", ())


def named(*globs: str) -> Policy:
    """Sites one of whose whole dotted names matches; `*` stands for any characters, dots included.

    A name without `*` is a demand: it must exist, and a layer that cannot be rewritten is then an error.
    """
    if not globs:
        raise PolicyError("named: no name given; pass at least one, for example named('layer4.*')")
    if wrong := [glob for glob in globs if not isinstance(glob, str) or not _NAME.fullmatch(glob)]:
        raise PolicyError(f"named: {wrong[0]!r} is no layer name; pass dotted names, for example 'layer4.*'")
    return _Test("named", globs)


def kernel_size(*sizes: int | tuple[int, int]) -> Policy:
    """Sites whose window is one of `sizes`: an int for a square one, a pair for height and width."""
    if not sizes:
        raise PolicyError("kernel_size: no size given; pass at least one, for example kernel_size(3, 5)")
    windows = [(size, size) if isinstance(size, int) else tuple(size) for size in sizes]
    if wrong := [window for window in windows if len(window) != 2 or min(window) < 1]:
        raise PolicyError(
            f"kernel_size: {wrong[0]} is no window; pass ints or pairs, for example kernel_size(3, (1, 5))"
        )
    return _Test("kernel_size", tuple(windows))


def stride(*steps: int) -> Policy:
    """Sites whose stride, in both directions, is one of `steps`."""
    if not steps:
        raise PolicyError("stride: no step given; pass at least one, for example stride(1)")
    return _Test("stride", tuple(_whole("stride", step) for step in steps))


def min_channels(channels: int) -> Policy:
    """Sites with at least so many input and output channels."""
    return _Test("min_channels", (_whole("min_channels", channels),))


def min_params(params: int) -> Policy:
    """Sites with at least so many parameters, bias included."""
    return _Test("min_params", (_whole("min_params", params),))


def min_macs(macs: int) -> Policy:
    """Sites with at least so many multiply-accumulates on the example, all calls together."""
    return _Test("min_macs", (_whole("min_macs", macs),))


def min_share(share: float) -> Policy:
    """Sites that do at least this share (0 to 1) of the model's multiply-accumulates."""
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise PolicyError(f"min_share: a share lies between 0 and 1, got {share!r}")
    return _Test("min_share", (float(share),))


def stem() -> Policy:
    """Sites that read the network's input and see fewer than eight channels per group: nothing to win there.

    A conv of few channels in the middle of a network, such as the first of a second U-Net, is none.
    """
    return _Test("stem", ())


def default_policy() -> Policy:
    """What `convert` touches when it is not told: everything but the stem."""
    return ~stem()


def _whole(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise PolicyError(f"{name}: expected a whole number, got {value!r}")
    return value


_MEANINGS: dict[str, Callable[[Site, tuple[Any, ...]], bool]] = {
    "everything": lambda _site, _values: True,
    "named": lambda site, texts: any(fnmatch.fnmatchcase(name, glob(text)) for name in site.names for text in texts),
    "kernel_size": lambda site, windows: site.geometry.kernel_size in windows,
    "stride": lambda site, steps: any(set(site.geometry.stride) == {step} for step in steps),
    "min_channels": lambda site, least: min(site.geometry.in_channels, site.geometry.out_channels) >= least[0],
    "min_params": lambda site, least: site.params >= least[0],
    "min_macs": lambda site, least: site.macs >= least[0],
    "min_share": lambda site, least: site.share >= least[0],
    "stem": lambda site, _values: site.reads_input and site.geometry.in_per_group < 8 and not site.geometry.depthwise,
}

TESTS: Mapping[str, Callable[..., Policy]] = {
    "everything": everything,
    "named": named,
    "kernel_size": kernel_size,
    "stride": stride,
    "min_channels": min_channels,
    "min_params": min_params,
    "min_macs": min_macs,
    "min_share": min_share,
    "stem": stem,
}

_NAME = re.compile(r"[\w.*:-]+")


def check_names(policy: Policy, sites: Iterable[Site]) -> frozenset[str]:
    """The names that a policy demands: those of `named` without a wildcard and not under `~`.

    Raises:
        PolicyError: a name or pattern that fits no conv; the nearest names are given.
    """
    known = {name for site in sites for name in site.names}
    demanded = set[str]()
    for part, positive in policy.parts():
        if not isinstance(part, _Test) or part.name != "named":
            continue
        for text in part.values:
            if not fnmatch.filter(known, glob(text)):
                raise PolicyError(
                    f"policy: no conv is named {text!r}{nearest(text, known)}; run inspect to see all names"
                )
            if positive and "*" not in text:
                demanded.add(text)
    return frozenset(demanded)


def glob(text: str) -> str:
    """A name in which only `*` is special, as a pattern of `fnmatch`."""
    return text.replace("[", "[[]").replace("?", "[?]")


def _written(value: object) -> str:
    if isinstance(value, tuple):
        return str(value[0]) if len(set(value)) == 1 else "x".join(map(str, value))
    return str(value)
