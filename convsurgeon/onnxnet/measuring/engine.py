"""How a network is run: threads, execution provider and options; and sessions that run it so."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnxruntime as ort

from .clock import Clock, Times, Watch
from .openvino import OpenVino
from .options import nearest, why_unknown
from .profiles import Kernel, read_kernels

CPU = "CPUExecutionProvider"
OPENVINO = "openvino"
"""Stands for OpenVINO itself, without onnxruntime."""
LEVELS = {
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "off": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
_OWN_THREADS = {"OpenVINOExecutionProvider": "num_of_threads", "XnnpackExecutionProvider": "intra_op_num_threads"}
"""What providers with threads of their own call their number."""
_SESSION = (
    *("enable_cpu_mem_arena", "enable_mem_pattern", "enable_mem_reuse"),
    *("inter_op_num_threads", "use_deterministic_compute"),
)
"""Attributes of a session's options that may be set; what has a dot in its name is an entry of its configuration."""
SMALLEST = (
    b'\x08\x07:3\n\x0c\n\x01x\x12\x01y"\x04Relu\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\r"
)
"""An ONNX file of one ReLU."""


_LONGEST = 300


class MeasureError(Exception):
    """The folder is not complete, or the runtime cannot run what is in it."""


def fuses(provider: str) -> bool:
    """Return whether a provider's nodes are one in the runtime's profile."""
    return provider not in (CPU, "XnnpackExecutionProvider", "CUDAExecutionProvider", "DmlExecutionProvider")


@dataclass(frozen=True)
class Engine:
    """How networks are run.

    Args:
        threads: of the runtime.
        provider: onnxruntime's execution provider, or `OPENVINO`.
        options: of the provider, of the session, and entries of its configuration, all by their names there.
        level: of onnxruntime's graph optimisations.
    """

    threads: int = 1
    provider: str = CPU
    options: Mapping[str, Any] = field(default_factory=dict)
    level: str = "all"

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", {name: self._text(name, one) for name, one in self.options.items()})

    def __str__(self) -> str:
        options = [f"{name}={value}" for name, value in self.options.items()]
        return ", ".join([f"threads {self.threads}", *([] if self.provider == CPU else [self.provider]), *options])

    def _text(self, name: str, value: object) -> str:
        """Return an option as its reader takes it: sessions and CoreML want 1, TensorRT and OpenVINO want True.

        A session reads "True", as it is typed on a command line, as no.
        """
        numeric = "." in name or name in _SESSION or self.provider == "CoreMLExecutionProvider"
        text = str(value)
        return {"true": "1", "false": "0"}.get(text.lower(), text) if numeric else text

    def check(self) -> None:
        """Refuse what this machine lacks, before anything heavy is done."""
        if self.provider == OPENVINO:
            try:
                importlib.import_module("openvino")
            except ImportError as error:
                raise MeasureError(f"provider 'openvino': {error}; pip install openvino") from None
        elif self.provider not in ort.get_available_providers():
            there = ", ".join(ort.get_available_providers())
            near = nearest(self.provider, [OPENVINO, *ort.get_all_providers()])
            raise MeasureError(
                f"provider {self.provider!r}: not in this onnxruntime {ort.__version__}, which has {there}; pass one "
                f"of these, or install a build of onnxruntime with it{near}"
            )
        for name in self.options if self.provider != OPENVINO else ():
            if name.startswith("session.") and (why := why_unknown(name)):
                raise MeasureError(why)
        if self.provider != CPU or self.options:
            self.open(SMALLEST)

    def open(self, model: Path | bytes, log: Path | None = None) -> Any:
        """Return a session of a file, or of one in memory; the CPU runs the nodes that the provider cannot.

        Args:
            model: the file.
            log: beginning of the name of the file that the runtime's profile goes to, if it is to be kept.
        """
        where = str(model) if isinstance(model, Path) else f"provider {self.provider!r}"
        runtime = "OpenVINO" if self.provider == OPENVINO else "onnxruntime"
        try:
            if self.provider == OPENVINO:
                return OpenVino(model, self.threads, self.options, profiled=log is not None)
            source = str(model) if isinstance(model, Path) else model
            session = ort.InferenceSession(source, self._of_session(log), providers=self.providers(), enable_fallback=0)
        except Exception as error:  # the runtimes' exceptions share no base class but Exception
            raise MeasureError(f"{where}: {runtime} cannot load it: {first_line(error)} ({self})") from None
        if session.get_providers()[0] != self.provider:
            raise MeasureError(
                f"{where}: onnxruntime leaves it out ({self}): is its device there, and are these options its own?"
            )
        return session

    def sparing(self, session: Any) -> Any:
        """Return a session that gives back the memory of every run as it ends, where that is the CPU's own.

        The next run takes it anew, which is a tenth of the time of a run that fills gigabytes.
        """
        has_arena = self.provider == CPU and self.options.get("enable_cpu_mem_arena") != "0"
        return _Sparing(session) if has_arena else session

    def clock(self) -> Clock:
        """Return the clock: a single thread is that which calls, on the CPU."""
        on_cpu = self.provider in (CPU, OPENVINO, *_OWN_THREADS)
        return Clock(self.threads == 1 and on_cpu and self.options.get("device_type", "CPU") == "CPU")

    def providers(self) -> list[Any]:
        """Return the execution providers with their options, as a session takes them."""
        own = {name: one for name, one in self.options.items() if "." not in name and name not in _SESSION}
        if self.provider == CPU:
            if own:
                near = nearest(next(iter(own)), _SESSION)
                raise ValueError(
                    f"{next(iter(own))} is not an option; those without a dot are {', '.join(_SESSION)}{near}"
                )
            return [CPU]
        name = _OWN_THREADS.get(self.provider)
        return [(self.provider, own if name is None else {name: str(self.threads), **own}), CPU]

    def session_entries(self) -> dict[str, str]:
        """Return the options that are entries of a session's configuration."""
        return {name: one for name, one in self.options.items() if "." in name}

    def session_attributes(self) -> dict[str, Any]:
        """Return the options that are attributes of a session's options."""
        usual, given = ort.SessionOptions(), [name for name in _SESSION if name in self.options]
        for name in given:
            if not self.options[name].isdecimal():
                raise ValueError(f"{name}={self.options[name]}: pass a whole number, or a truth value")
        return {name: type(getattr(usual, name))(int(self.options[name])) for name in given}

    def _of_session(self, log: Path | None) -> Any:
        """Return the options of a session."""
        options = base_options(self.threads, self.session_entries())
        options.graph_optimization_level = LEVELS[self.level]
        for name, value in self.session_attributes().items():
            setattr(options, name, value)
        if log is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(log)
        return options


class _Sparing:
    """A session whose memory shrinks after every run."""

    def __init__(self, session: Any) -> None:
        self._session, self._how = session, ort.RunOptions()
        self._how.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def run(self, names: Any, feeds: dict[str, Any]) -> Any:
        """Run it as a session does."""
        return self._session.run(names, feeds, self._how)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


def read_profile(session: Any, stamps: Times, watch: Watch) -> list[Kernel]:
    """Return what every node took in the last runs, and end the profile; see `read_kernels`."""
    if isinstance(session, OpenVino):
        return session.end_profiling(stamps)
    return read_kernels(Path(session.end_profiling()), stamps, watch)


def base_options(threads: int | None = None, entries: dict[str, str] | None = None, spinning: bool = True) -> Any:
    """Return options under which a network runs as it does in use, and does not disturb others that are being timed.

    The runtime's workers spin between the nodes of a run, which decides what short nodes cost. By default they also
    spin between runs, and take the cores from other sessions; that is left out.

    Args:
        threads: of the runtime; all cores if not given.
        entries: of the session's configuration, which take precedence.
        spinning: whether workers spin.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if threads is not None:
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    usual = {"session.intra_op.allow_spinning": str(int(spinning))}
    usual.update({"session.force_spinning_stop": "1"} if spinning else {})
    for name, value in {**usual, **(entries or {})}.items():
        options.add_session_config_entry(name, value)
    return options


def first_line(error: Exception) -> str:
    """Return the first line of an error that says more than where the runtime's source raised it, cut to 300 letters.

    Onnxruntime says that first in its line and OpenVINO in lines of its own, so the end of a long line is kept.
    """
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith("Exception from ")]
    text = (said or [type(error).__name__])[0]
    return text if len(text) <= _LONGEST else "..." + text[3 - _LONGEST :]
