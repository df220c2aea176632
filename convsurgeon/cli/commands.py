"""The commands in words, so that `convsurgeon --help` need not load what they do."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from typing import Any, NoReturn

from convsurgeon.base.errors import nearest

COMMANDS = {
    "inspect": ("convert", "show every conv, what it costs, and how much of its weights rank 1, 2 and 3 keep"),
    "plan": ("convert", "show what would become of every conv, and what that would cost"),
    "sweep": ("convert", "show what each budget costs in error: the trade-off"),
    "convert": ("convert", "rewrite a model's convs, report, export to ONNX, check and time"),
    "recover": ("recover", "train a converted model to answer as its original, without labels"),
    "device": ("timing", "write a folder to take to a device, with a script that times layers there"),
    "bench": ("timing", "time ONNX files against the first one, in interleaved pairs"),
}
"""Name -> the module of this package that has it, and what it does."""


class Command(argparse.ArgumentParser):
    """A parser whose errors are one line.

    Its --help fits on a screen: it shows the options of `usual`, and --help-all shows every one.
    """

    usual: Collection[str] = ()

    def error(self, message: str) -> NoReturn:
        """End the process with one line; argparse would print every option before it."""
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Read arguments; of an unknown one say which it may have been."""
        options, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unknown argument {unknown[0]}{nearest(unknown[0], self._option_string_actions)}")
        return options, unknown

    def format_help(self) -> str:
        """Return the help, without the options that are seldom needed."""
        rare = [one for one in self._actions if self.usual and one.option_strings and one.dest not in self.usual]
        words = [one.help for one in rare]
        for one in rare:
            one.help = argparse.SUPPRESS
        self.usage = f"{self.prog} MODEL [options]" if self.usual else None
        text = super().format_help()
        for one, own in zip(rare, words, strict=True):
            one.help = own
        return text
