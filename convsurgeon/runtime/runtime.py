"""Where a network will run: threads, precision and the milliseconds of every layer."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from convsurgeon.base.errors import LatencyError, expect
from convsurgeon.base.normal import in_normal_mode
from convsurgeon.base.precision import PRECISIONS, Precision
from convsurgeon.forms.catalogue import Kinds
from convsurgeon.forms.form import Form
from convsurgeon.graph.capture import Capture
from convsurgeon.graph.example import Example
from convsurgeon.planning.plan import Plan
from convsurgeon.planning.select import Predicate
from convsurgeon.runtime.latencies import Latencies, NetworkTime

# Modules that load onnx and onnxruntime are imported where they are used.
if TYPE_CHECKING:
    from convsurgeon.onnxnet.measuring.engine import Engine
    from convsurgeon.timing.verdict import Verdict

_CPU = "CPUExecutionProvider"


@dataclass(frozen=True)
class Runtime:
    """onnxruntime or OpenVINO on this machine, or on the device that a file of measurements comes from.

    Args:
        threads: of the runtime.
        precision: of the file that ships: "fp32" or "int8".
        provider: onnxruntime's execution provider, or "openvino" for OpenVINO without onnxruntime.
        options: by the runtime's own names: of the provider (`{"device_type": "GPU"}`), of onnxruntime's session
            (`{"enable_cpu_mem_arena": False}`), or entries of its configuration, which have a dot in them
            (`{"session.intra_op.allow_spinning": "0"}`).
        cache: folder of earlier measurements, one file per network, machine, version of the runtime and settings; the
            user's cache folder if not given.
        table: milliseconds measured before, a `LatencyTable` or anything that answers the same questions.

    Raises:
        LatencyError: the precision is not one of the two, the table is of the other one, or this machine lacks the
            provider or its options.
    """

    threads: int = 1
    precision: Precision = "fp32"
    provider: str = _CPU
    options: Mapping[str, object] = field(default_factory=dict)
    cache: str | Path | None = None
    table: Latencies | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.threads, numbers.Integral) or self.threads < 1:
            raise LatencyError(f"threads={self.threads!r}: pass a whole number of at least 1")
        expect(self.provider, str, "provider: expected a name, such as 'openvino'", LatencyError)
        expect(self.options, Mapping, "options: expected a dict of names and values", LatencyError)
        for name in self.options:
            expect(name, str, f"options: {name!r}: expected the name of an option", LatencyError)
        if self.precision not in PRECISIONS:
            raise LatencyError(f"precision={self.precision!r}: pass one of {', '.join(PRECISIONS)}")
        found = self.precision if self.table is None else getattr(self.table, "precision", "fp32")
        if found != self.precision:
            raise LatencyError(
                f"precision={self.precision!r}: the table was measured in {found}; pass precision={found!r}, or "
                f"measure a table in {self.precision}"
            )
        if self.table is None and (self.provider != _CPU or self.options):
            from convsurgeon.onnxnet.session import check_engine

            check_engine(self.engine)

    @staticmethod
    def load(path: str | Path, *, precision: Precision = "fp32", forms: Kinds = ()) -> Runtime:
        """Read the `device.json` of a device, or a table that `LatencyTable.save` wrote.

        Args:
            path: of the file.
            precision: that is wanted of it.
            forms: kinds of form that may be in it beside those of the package.

        Raises:
            LatencyError: the file is neither, is damaged, or does not hold this precision.
        """
        from convsurgeon.runtime.table import LatencyTable

        table = LatencyTable.load(path, forms, precision=precision)
        raw = table.measurements
        return Runtime(raw.threads, precision, raw.provider, raw.options, table=table)

    @property
    def engine(self) -> Engine:
        """Return how files are run."""
        from convsurgeon.onnxnet.measuring.engine import Engine

        return Engine(self.threads, self.provider, self.options)

    @property
    def where(self) -> str:
        """Return what runs the network, in words."""
        plain = {_CPU: "onnxruntime", "openvino": "OpenVINO"}
        options = "".join(f", {name}={value}" for name, value in self.options.items())
        return plain.get(self.provider, f"onnxruntime's {self.provider}") + options

    @in_normal_mode
    def measure(
        self,
        seen: Capture,
        forms: Sequence[Form],
        policy: Predicate | None = None,
        *,
        passes: int = 3,
        prune: bool = True,
        progress: bool = True,
    ) -> Latencies:
        """Return the milliseconds of every site in every form: the given table, or a `LatencyTable` of this machine.

        What was measured before is read from the cache, and a measurement that was stopped goes on from there.

        Args:
            seen: the dense network, captured.
            forms: candidates for every site.
            policy: which sites may be changed; all by default.
            passes: sets of fresh sessions; the median of them counts.
            prune: leave out what can hardly be faster than dense, judged by the cheapest form of its kind.
            progress: whether a bar appears when it takes longer than two seconds.

        Raises:
            ExportError: the model has no ONNX form.
            LatencyError: a form, or the network, cannot be timed, or the cached file is damaged.
            WriteError: there is no place for the cache.
        """
        if self.table is not None:
            return self.table
        from convsurgeon.runtime.measure import Settings
        from convsurgeon.runtime.table import measure_table

        how = Settings(self.engine, self.precision, passes, progress)
        return measure_table(seen, forms, policy, how, cache=self.cache, prune=prune)

    @in_normal_mode
    def time_plans(
        self, seen: Capture, plans: Sequence[Plan], *, passes: int = 3, progress: bool = True
    ) -> tuple[float, tuple[NetworkTime, ...]]:
        """Return the milliseconds of the dense network, and what the network of every plan takes, both measured now.

        The weights do not matter and are not fitted.

        Raises:
            ExportError: the model has no ONNX form.
            LatencyError: a plan holds a form, or changes a conv, that cannot be timed.
        """
        from convsurgeon.runtime.measure import Settings, time_plans

        return time_plans(seen, plans, Settings(self.engine, self.precision, passes, progress))

    def compare_with_file(self, seen: Capture, plan: Plan, *, progress: bool = True) -> Verdict | None:
        """Return how the network of a plan compares with the original as torch writes it or as it is stored.

        None where that is the original as it was timed, and where nothing is timed here.
        """
        from convsurgeon.runtime.measure import Settings, compare_plan
        from convsurgeon.runtime.network_graph import is_written_anew

        if self.table is not None or not is_written_anew(seen):
            return None
        return compare_plan(seen, plan, Settings(self.engine, self.precision, 1, progress), as_it_was=True)

    def deployed(self, model: nn.Module, batches: Sequence[Example]) -> nn.Module:
        """Return a model that computes what the file that ships computes: itself in fp32, the int8 network in int8.

        Args:
            model: in float; it stays as it is.
            batches: of the calibration set, for the ranges of int8.

        Raises:
            ExportError: the model has no ONNX form, or the quantiser fails on it.
        """
        if self.precision == "fp32":
            return model
        from convsurgeon.int8.module import as_int8

        return as_int8(model, batches)
