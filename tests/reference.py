"""The reference, made from the docstrings of every public name.

python -m tests.reference      # writes examples/reference.md
"""

from __future__ import annotations

import enum
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import convsurgeon as cs

PAGE = Path(__file__).resolve().parents[1] / "examples" / "reference.md"
_HEAD = """\
# Reference

Made from the docstrings by `python -m tests.reference`; to change a sentence, change it there. The [guide](guide.md)
explains how to choose.
"""
_SPACES = ("onnx", "timing", "select", "errors")
_SECTION = re.compile(r"^(Args|Returns|Raises|Yields):$")


def make() -> str:
    """Return the page: verbs and other functions, then nouns, then the namespaces."""
    own = {
        name: getattr(cs, name) for name in sorted(cs.__all__, key=str.lower) if name not in (*_SPACES, "__version__")
    }
    functions = {name: one for name, one in own.items() if not inspect.isclass(one)}
    classes = {name: one for name, one in own.items() if inspect.isclass(one)}
    parts = [_HEAD, "## Calls\n", *_entries("cs", functions), "## Nouns\n", *_entries("cs", classes)]
    for space in _SPACES:
        module = getattr(cs, space)
        names = getattr(module, "__all__", None) or [
            name for name, one in vars(module).items() if _defined_in(one, module)
        ]
        parts += [f"## cs.{space}\n", *_entries(f"cs.{space}", {name: getattr(module, name) for name in sorted(names)})]
    return "\n".join(parts).rstrip() + "\n"


def _defined_in(one: Any, module: Any) -> bool:
    return getattr(one, "__module__", "") == module.__name__ and callable(one) and not one.__name__.startswith("_")


def _entries(space: str, things: dict[str, Any]) -> Iterator[str]:
    for name, one in things.items():
        yield f"### {space}.{name}\n"
        if not (inspect.isclass(one) and issubclass(one, Exception)):
            yield f"```\n{name}{_signature(one)}\n```\n"
        yield f"{_text(one)}\n"
        members = list(_members(one)) if inspect.isclass(one) else []
        if members:
            yield "\n".join(members) + "\n"


def _signature(one: Any) -> str:
    """Return names and simple defaults; what a field is filled with by the tool itself is left out."""
    found = inspect.signature(one)
    shown = [
        parameter.replace(annotation=parameter.empty, default=_default(parameter.default))
        for parameter in found.parameters.values()
    ]
    return str(found.replace(parameters=shown, return_annotation=found.empty))


class _Rest(enum.Enum):
    """A default that is written as three dots."""

    REST = "..."

    def __repr__(self) -> str:
        return self.value


def _default(value: Any) -> Any:
    simple = value is inspect.Parameter.empty or isinstance(value, str | int | float | bool | None | tuple)
    return value if simple else _Rest.REST


def _members(one: type) -> Iterator[str]:
    """Yield a line for every public method and property of a class, with the first sentence of its docstring."""
    for name, value in vars(one).items():
        target: Callable[..., Any] | None = getattr(value, "fget", None) or getattr(value, "__func__", value)
        if name.startswith("_") or not inspect.isfunction(target) or not target.__doc__:
            continue
        call = "" if isinstance(value, property) else "()"
        yield f"- `.{name}{call}` {_first(target.__doc__)}"


def _first(text: str) -> str:
    """Return the first paragraph of a docstring in one line."""
    return " ".join(inspect.cleandoc(text).split("\n\n")[0].split())


def _text(one: Any) -> str:
    """Return a docstring as Markdown: its sections as lists."""
    lines, section = [], ""
    for line in inspect.cleandoc(one.__doc__ or "").splitlines():
        if found := _SECTION.match(line):
            section = found[1]
            lines += [f"**{section}**", ""]
        elif section in ("Args", "Raises") and re.match(r"^ {4}[\w*]", line):
            name, _, rest = line.strip().partition(": ")
            lines.append(f"- `{name}`: {rest}" if rest else f"- {name}")
        elif section and line.strip():
            lines.append(f"  {line.strip()}" if section in ("Args", "Raises") else line.strip())
        else:
            lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(make(), encoding="utf-8")
