"""Measurements as the measuring script writes them, read from JSON into typed values."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from convsurgeon.base.errors import LatencyError, reason
from convsurgeon.base.files import read_bytes
from convsurgeon.base.precision import Precision
from convsurgeon.forms.catalogue import Kinds, is_known
from convsurgeon.onnxnet.measuring.engine import CPU, Engine
from convsurgeon.onnxnet.measuring.files import DENSE_OF, FORMAT

MARK = "convsurgeon_device"
_DAY_MS = 8.64e7
_Milliseconds = Annotated[float, Meta(ge=0, lt=_DAY_MS)]
_Duration = Annotated[float, Meta(gt=0, lt=_DAY_MS)]


class NodeFacts(Struct, array_like=True, frozen=True):
    """What a numbered node of a candidate network is, and the site that it belongs to, if any."""

    operator: str
    site: str
    near: str
    """The site itself, or else the one before it."""
    conv: int
    """Number of the conv before it in the graph, or -1."""


class NodeTime(Struct, array_like=True, frozen=True):
    """What one executed node took."""

    name: str
    operator: str
    ms: _Milliseconds


class TimedNetwork(Struct, frozen=True):
    """A candidate network: the form of every site that it changes, as JSON, and its nodes by their numbers."""

    label: str
    forms: dict[str, dict[str, Any]]
    nodes: tuple[NodeFacts, ...]
    precision: Precision = "fp32"


class Sample(Struct, frozen=True, rename={"number": "pass"}):
    """One network in one pass, and what the dense network took in the same pass."""

    number: Annotated[int, Meta(ge=0)]
    network: str
    total_ms: _Duration
    dense_ms: _Duration
    nodes: tuple[NodeTime, ...]
    scatter: Annotated[float, Meta(ge=0)] = 0.0
    """Share by which `total_ms / dense_ms` may be off."""
    busy: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """Share of the processor that others took meanwhile."""


class Measurements(Struct, frozen=True):
    """Everything that was measured of one network on one machine; `barred` sites could not be timed."""

    machine: dict[str, str | int | float]
    threads: Annotated[int, Meta(ge=1, lt=1 << 31)]
    model: str
    example: str
    sites: tuple[str, ...]
    networks: dict[str, TimedNetwork]
    samples: tuple[Sample, ...]
    barred: dict[str, str] = {}
    provider: str = CPU
    options: dict[str, str] = {}
    power: str = ""
    """Power mode of the device, as its user calls it."""

    def __post_init__(self) -> None:
        for key, network in self.networks.items():
            if unknown := sorted(set(network.forms) - set(self.sites)):
                raise ValueError(f"network {key[:40]!r} changes {unknown[0][:40]!r}, which is not among the sites")
            if any(not -1 <= node.conv < len(network.nodes) for node in network.nodes):
                raise ValueError(f"network {key[:40]!r} has a node that belongs to a node that does not exist")
        if unknown := sorted({sample.network for sample in self.samples} - set(self.networks)):
            raise ValueError(f"a sample is of network {unknown[0][:40]!r}, which is not in the file")

    @property
    def engine(self) -> Engine:
        """Return how the networks were run."""
        return Engine(self.threads, self.provider, self.options)

    @property
    def precision(self) -> Precision:
        """Return the precision of the networks: fp32 where there are both."""
        return "fp32" if DENSE_OF["fp32"] in self.networks else "int8"

    @property
    def dense(self) -> list[Sample]:
        """Return the samples of the dense network."""
        found = [sample for sample in self.samples if sample.network == DENSE_OF[self.precision]]
        if not found:
            raise LatencyError("has no times of the dense network; run measure.py to its end first")
        return found

    @property
    def total_ms(self) -> float:
        """Return the milliseconds of the dense network, the median over the passes."""
        return median(sample.total_ms for sample in self.dense)

    @property
    def passes(self) -> int:
        """Return the number of passes in which the dense network was timed."""
        return len({sample.number for sample in self.dense})

    @property
    def busy(self) -> float:
        """Return the share of the processor that others took, at worst."""
        return max((sample.busy for sample in self.samples), default=0.0)

    def select(self, precision: Precision) -> Measurements:
        """Return what was measured in one precision."""
        own = {key: network for key, network in self.networks.items() if network.precision == precision}
        if DENSE_OF[precision] not in own:
            raise LatencyError(f"has no networks in {precision}; measure with precision={precision!r}")
        return self._only(own)

    def known(self, forms: Kinds) -> Measurements:
        """Return what was measured of forms that are known; earlier calls may have left others in a cache."""
        networks = self.networks.items()
        return self._only({key: one for key, one in networks if all(is_known(it, forms) for it in one.forms.values())})

    def beside_dense(self, keys: Container[str]) -> Measurements:
        """Return what was measured of some networks, and of the dense one in the same sessions."""
        dense = DENSE_OF[self.precision]
        sessions = {(one.number, one.dense_ms) for one in self.samples if one.network in keys}
        samples = tuple(
            one
            for one in self.samples
            if one.network in keys or (one.network == dense and (one.number, one.dense_ms) in sessions)
        )
        networks = {name: one for name, one in self.networks.items() if name == dense or name in keys}
        return msgspec.structs.replace(self, networks=networks, samples=samples)

    def _only(self, networks: dict[str, TimedNetwork]) -> Measurements:
        samples = tuple(sample for sample in self.samples if sample.network in networks)
        return msgspec.structs.replace(self, networks=networks, samples=samples)


def parse_measurements(values: object) -> Measurements:
    """Return typed measurements from JSON."""
    found = values.get(MARK) if isinstance(values, dict) else None
    if found != FORMAT:
        raise LatencyError(f"has {MARK} {found!r}, and this version reads {FORMAT}; measure again")
    try:
        return msgspec.convert(values, Measurements)
    except msgspec.ValidationError as error:
        raise LatencyError(f"is damaged ({error}); delete it and measure again, or copy it again") from error


def read_measurements(path: Path) -> Measurements:
    """Return the measurements in a file."""
    try:
        return parse_measurements(msgspec.json.decode(read_bytes(path)))
    except OSError as error:
        raise LatencyError(f"{path}: cannot be read ({reason(error)})") from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise LatencyError(f"{path}: is damaged ({error}); delete it and measure again, or copy it again") from error
    except LatencyError as error:
        raise LatencyError(f"{path}: {error}") from error
