"""Policies from one line of text, for the command line and for files."""

from __future__ import annotations

import re
from collections.abc import Iterator

from convsurgeon.base.errors import PolicyError, nearest
from convsurgeon.planning.policy import TESTS, Policy

_TOKEN = re.compile(r"\s*(?:([&|~(),])|'([^']*)'|\"([^\"]*)\"|([\w.*:+-]+))")


def parse_policy(text: str) -> Policy:
    """Reads a policy from one line, as `str(policy)` writes it; names may be quoted, windows written `3x5`.

    Raises:
        PolicyError: what is wrong and at which character.
    """
    try:
        return _Parser(text).whole()
    except RecursionError:
        raise PolicyError(f"policy: nested too deeply in {text[:40]!r}...; write it flatter") from None


class _Parser:
    """Recursive descent: either := both ('|' both)*, both := one ('&' one)*, one := '~' one | '(' either ')' | test."""

    def __init__(self, text: str) -> None:
        self.text, self.position = text, 0
        self.tokens = list(self._split())

    def whole(self) -> Policy:
        policy = self.either()
        if self.tokens:
            raise self._error(f"unexpected {self.tokens[0][0]!r}")
        return policy

    def either(self) -> Policy:
        policy = self.both()
        while self._take("|"):
            policy = policy | self.both()
        return policy

    def both(self) -> Policy:
        policy = self.one()
        while self._take("&"):
            policy = policy & self.one()
        return policy

    def one(self) -> Policy:
        inverted = False
        while self._take("~"):
            inverted = not inverted
        if self._take("("):
            policy = self.either()
            self._expect(")")
        else:
            policy = self.test()
        return ~policy if inverted else policy

    def test(self) -> Policy:
        name = self._word("a test such as kernel_size(3)")
        if name not in TESTS:
            raise PolicyError(f"policy: unknown test {name!r}{nearest(name, TESTS)}; known are {', '.join(TESTS)}")
        values: list[str] = []
        if self._take("("):
            while not self._take(")"):
                values.append(self._word("a value or ')'"))
                if not self._take(","):
                    self._expect(")")
                    break
        try:
            return TESTS[name](*(values if name == "named" else map(_value, values)))
        except TypeError as error:
            raise PolicyError(f"policy: {name} does not take {len(values)} values") from error

    def _split(self) -> Iterator[tuple[str, bool]]:
        while self.position < len(self.text.rstrip()):
            match = _TOKEN.match(self.text, self.position)
            if match is None:
                raise self._error(f"unexpected {self.text[self.position :].strip()[0]!r}")
            self.position = match.end()
            sign, single, double, word = match.groups()
            yield (sign, True) if sign else (next(item for item in (single, double, word) if item is not None), False)

    def _take(self, sign: str) -> bool:
        if self.tokens and self.tokens[0] == (sign, True):
            self.tokens.pop(0)
            return True
        return False

    def _expect(self, sign: str) -> None:
        if not self._take(sign):
            found = repr(self.tokens[0][0]) if self.tokens else "the end"
            raise self._error(f"expected {sign!r}, found {found}")

    def _word(self, what: str) -> str:
        if not self.tokens or self.tokens[0][1]:
            found = repr(self.tokens[0][0]) if self.tokens else "the end"
            raise self._error(f"expected {what}, found {found}")
        return self.tokens.pop(0)[0]

    def _error(self, what: str) -> PolicyError:
        return PolicyError(f"policy: {what} in {self.text!r}; write for example 'kernel_size(3) & ~named(conv1)'")


def _value(text: str) -> int | float | tuple[int, ...]:
    if len(text) > 40:  # Python refuses whole numbers of thousands of digits, and with another error
        raise PolicyError(f"policy: {text[:40]!r}... is no number")
    if re.fullmatch(r"\d+(x\d+)+", text):
        return tuple(map(int, text.split("x")))
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        raise PolicyError(f"policy: {text!r} is no number") from None
