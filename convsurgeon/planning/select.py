"""Policies: which convs may be changed. Tests of a `Site`, joined with `&`, `|` and `~`; public as `cs.select`.

    kernel_size(3, 5) & min_channels(32) & ~named(conv1, layer4.*)

A policy prints as the text it is read from, `parse(str(policy)) == policy`. Any function of a site is a policy too. The
stem stays dense unless a policy asks for it: by its exact name, with `stem()` or with `everything()`, which is what a
search begins with.
"""

from __future__ import annotations

import ast
import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from convsurgeon.base.errors import PolicyError, expect, nearest
from convsurgeon.graph.site import Site

Predicate = Callable[[Site], bool]


@dataclass(frozen=True)
class Policy:
    """A test of a site: by name with its values; or of policies, under a sign; or a function of the user's own."""

    name: str
    values: tuple[Any, ...]
    test: Predicate = field(compare=False, repr=False)

    def __call__(self, site: Site) -> bool:
        """Return whether the site may be changed."""
        return bool(self.test(site))

    def __and__(self, other: Predicate) -> Policy:
        return _join("&", self, other)

    def __rand__(self, other: Predicate) -> Policy:
        return _join("&", other, self)

    def __or__(self, other: Predicate) -> Policy:
        return _join("|", self, other)

    def __ror__(self, other: Predicate) -> Policy:
        return _join("|", other, self)

    def __invert__(self) -> Policy:
        return self.values[0] if self.name == "~" else Policy("~", (self,), lambda site: not self(site))

    def leaves(self) -> Iterator[tuple[Policy, bool]]:
        """Yield every test of the expression, with whether it stands under an even number of `~`."""
        if self.name not in _SIGNS:
            yield self, True
            return
        for member in self.values:
            yield from ((leaf, positive != (self.name == "~")) for leaf, positive in member.leaves())

    def __str__(self) -> str:
        if self.name == "&":
            return " & ".join(f"({member})" if member.name == "|" else str(member) for member in self.values)
        if self.name == "|":
            return " | ".join(map(str, self.values))
        if self.name == "~":
            inner = self.values[0]
            return f"~({inner})" if inner.name in _SIGNS else f"~{inner}"
        if not self.name:
            return getattr(self.test, "__name__", type(self.test).__name__)
        return f"{self.name}({', '.join(map(_value_text, self.values))})"


_SIGNS = ("&", "|", "~")


def _join(sign: str, *policies: Predicate) -> Policy:
    """Return policies under one sign, nests of the same sign flattened."""
    made = [as_policy(one) for one in policies]
    members = tuple(member for one in made for member in (one.values if one.name == sign else (one,)))
    every = all if sign == "&" else any
    return Policy(sign, members, lambda site: every(member(site) for member in members))


def as_policy(value: Predicate) -> Policy:
    """Return a policy as it is, or one made of a function of a site."""
    if isinstance(value, Policy):
        return value
    if not callable(value):
        raise PolicyError(f"policy: expected a policy or a function of a site, got {type(value).__name__}")
    return Policy("", (value,), value)


def everything() -> Policy:
    """Select every conv, the stem included."""
    return Policy("everything", (), lambda _: True)


def named(*globs: str) -> Policy:
    """Select convs by their whole dotted names; `*` stands for any characters, dots included.

    A name without `*` is a demand: it must exist, and a conv that cannot be changed is then an error.
    """
    if not globs:
        raise PolicyError("named: no name given; pass at least one, for example named('layer4.*')")
    if wrong := [one for one in globs if not isinstance(one, str) or not re.fullmatch(r"[\w.*:-]+", one)]:
        raise PolicyError(f"named: {wrong[0]!r} is not a layer name; pass dotted names, for example 'layer4.*'")
    return Policy("named", globs, lambda site: any(matches(site, glob) for glob in globs))


def kernel_size(*sizes: int | tuple[int, int]) -> Policy:
    """Select convs whose window is one of `sizes`: an int for a square one, a pair for height and width."""
    windows = tuple((size, size) if isinstance(size, int) else tuple(size) for size in sizes)
    wrong = [window for window in windows if len(window) != 2 or min(window) < 1]
    if wrong or not sizes:
        found = f"{wrong[0]} is not a window" if wrong else "no size given"
        raise PolicyError(f"kernel_size: {found}; pass ints or pairs, for example kernel_size(3, (1, 5))")
    return Policy("kernel_size", windows, lambda site: site.geometry.kernel_size in windows)


def stride(*steps: int) -> Policy:
    """Select convs whose stride, in both directions, is one of `steps`."""
    if not steps:
        raise PolicyError("stride: no step given; pass at least one, for example stride(1)")
    allowed = tuple(_whole("stride", step) for step in steps)
    return Policy("stride", allowed, lambda site: any(set(site.geometry.stride) == {step} for step in allowed))


def min_channels(channels: int) -> Policy:
    """Select convs with at least so many input and output channels."""
    least = _whole("min_channels", channels)
    return Policy(
        "min_channels", (least,), lambda site: min(site.geometry.in_channels, site.geometry.out_channels) >= least
    )


def min_params(params: int) -> Policy:
    """Select convs with at least so many parameters, bias included."""
    least = _whole("min_params", params)
    return Policy("min_params", (least,), lambda site: site.params >= least)


def min_macs(macs: int) -> Policy:
    """Select convs with at least so many multiply-accumulates on the example, all calls together."""
    least = _whole("min_macs", macs)
    return Policy("min_macs", (least,), lambda site: site.macs >= least)


def min_share(share: float) -> Policy:
    """Select convs that do at least this share (0 to 1) of the model's multiply-accumulates."""
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise PolicyError(f"min_share: a share lies between 0 and 1, got {share!r}")
    return Policy("min_share", (float(share),), lambda site: site.share >= share)


def stem() -> Policy:
    """Select convs that read the network's input and see fewer than eight channels per group.

    A conv of few channels in the middle of a network, such as the first of a second U-Net, is not one.
    """
    return Policy(
        "stem",
        (),
        lambda site: site.reads_input and site.geometry.in_per_group < 8 and not site.geometry.depthwise,
    )


def default_policy() -> Policy:
    """Return what `convert` uses when it is not told: every conv but the stem."""
    return ~stem()


TESTS: dict[str, Callable[..., Policy]] = {
    test.__name__: test
    for test in (everything, named, kernel_size, stride, min_channels, min_params, min_macs, min_share, stem)
}
__all__ = ["Policy", "parse", *TESTS]


def parse(text: str) -> Policy:
    """Read a policy from one line, as `str(policy)` writes it.

    Raises:
        PolicyError: the text is not a policy; says what is wrong.
    """
    expect(text, str, "policy: expected a string", PolicyError)
    rest = _CALL.sub(r"\1 ", text)
    if strange := re.sub(r"\b[a-z_]\w*|[&|~()\s]", "", rest, flags=re.ASCII):
        raise PolicyError(f"policy: unexpected {strange[0]!r} in {text!r}; {_EXAMPLE}")
    try:
        return _read(ast.parse(_CALL.sub(_quote, text).strip(), mode="eval").body, text)
    except (RecursionError, MemoryError):
        raise PolicyError(f"policy: nested too deeply in {text[:40]!r}...; write it flatter") from None
    except (SyntaxError, ValueError) as error:
        raise PolicyError(f"policy: cannot read {text[:200]!r} ({error}); {_EXAMPLE}") from None


_CALL = re.compile(r"\b([a-z_]\w*)\s*\(([^()]*)\)", re.ASCII)
_QUOTES = "\"'"
_EXAMPLE = "write for example 'kernel_size(3) & ~named(conv1)'"


def _quote(call: re.Match[str]) -> str:
    """Return a test with every value as a string, so that names and windows need no quotes."""
    values = call[2].split(",") if call[2].strip() else []
    return f"{call[1]}({', '.join(repr(value.strip().strip(_QUOTES)) for value in values)})"


def _read(node: ast.expr, text: str) -> Policy:
    match node:
        case ast.BinOp(left, ast.BitAnd(), right):
            return _read(left, text) & _read(right, text)
        case ast.BinOp(left, ast.BitOr(), right):
            return _read(left, text) | _read(right, text)
        case ast.UnaryOp(ast.Invert(), inner):
            return ~_read(inner, text)
        case ast.Name(name):
            return _make(name, [])
        case ast.Call(ast.Name(name), arguments):
            return _make(name, [value.value for value in arguments if isinstance(value, ast.Constant)])
    raise PolicyError(f"policy: cannot read {text[:200]!r}; {_EXAMPLE}")


def _make(name: str, values: Sequence[Any]) -> Policy:
    if name not in TESTS:
        raise PolicyError(f"policy: unknown test {name!r}{nearest(name, TESTS)}; known are {', '.join(TESTS)}")
    try:
        return TESTS[name](*(values if name == "named" else map(_number, values)))
    except TypeError as error:
        raise PolicyError(f"policy: {name} does not take {len(values)} values") from error


def _number(text: str) -> int | float | tuple[int, ...]:
    """Return a number, or the window that `3x5` writes."""
    try:
        if len(text) > 40:  # Python refuses whole numbers of thousands of digits, and with another error
            raise ValueError
        if re.fullmatch(r"\d+(x\d+)+", text):
            return tuple(map(int, text.split("x")))
        return float(text) if re.search(r"[^\d+-]", text) else int(text)
    except ValueError:
        raise PolicyError(f"policy: {text[:40]!r} is not a number") from None


def resolve(policy: Predicate | None, sites: Sequence[Site]) -> tuple[Policy, set[str]]:
    """Return the policy that holds, without the stem unless it is asked for, and the exact names that are demanded."""
    chosen = default_policy() if policy is None else as_policy(policy)
    tests = list(chosen.leaves())
    globs = [(glob, positive) for leaf, positive in tests if leaf.name == "named" for glob in leaf.values]
    for glob, _ in globs:
        check_glob("policy", glob, sites)
    demanded = {glob for glob, positive in globs if positive and "*" not in glob}
    if not any(leaf.name == "stem" or (positive and leaf.name == "everything") for leaf, positive in tests):
        chosen = chosen & ((~stem() | named(*sorted(demanded))) if demanded else ~stem())
    return chosen, demanded


def check_glob(what: str, glob: str, sites: Iterable[Site]) -> None:
    """Check that a name or pattern fits a conv."""
    expect(glob, str, f"{what}: expected names of convs", PolicyError)
    sites = list(sites)
    if not any(matches(site, glob) for site in sites):
        known = [name for site in sites for name in site.names]
        raise PolicyError(f"{what}: no conv is named {glob!r}{nearest(glob, known)}; run inspect to see all names")


def matches(site: Site, glob: str) -> bool:
    """Return whether a pattern fits one of a site's names."""
    return any(fits(name, glob) for name in site.names)


def fits(name: str, glob: str) -> bool:
    """Return whether a pattern in which only `*` is special fits a whole name."""
    return fnmatch.fnmatchcase(name, glob.replace("[", "[[]").replace("?", "[?]"))


def _whole(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise PolicyError(f"{name}: expected a whole number, got {value!r}")
    return value


def _value_text(value: object) -> str:
    if isinstance(value, tuple):
        return str(value[0]) if len(set(value)) == 1 else "x".join(map(str, value))
    return str(value)
