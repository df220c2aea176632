"""Measurements as the measuring script writes them, read from JSON into typed values."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from convsurgeon.base.errors import LatencyError, reason
from convsurgeon.base.files import read_bytes
from convsurgeon.base.precision import Precision
from convsurgeon.forms.catalogue import Kinds, is_known
from convsurgeon.onnxnet.standalone import DENSE, DENSE_OF

T = TypeVar("T")

_DAY_MS = 8.64e7
Milliseconds = Annotated[float, Meta(ge=0, lt=_DAY_MS)]
Duration = Annotated[float, Meta(gt=0, lt=_DAY_MS)]
"""Milliseconds of a whole network, which are never none."""
Count = Annotated[int, Meta(ge=1, lt=1 << 31)]


class NodeFacts(Struct, array_like=True, frozen=True):
    """What a numbered node of a candidate network is.

    Args:
        operator: of the node.
        site: the node belongs to, if any.
        near: the site itself, or else the one before it.
        conv: number of the conv before it in the graph, or -1.
    """

    operator: str
    site: str
    near: str
    conv: int


class NodeTime(Struct, array_like=True, frozen=True):
    """What one executed node took."""

    name: str
    operator: str
    ms: Milliseconds


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
    total_ms: Duration
    dense_ms: Duration
    nodes: tuple[NodeTime, ...]


class Measurements(Struct, frozen=True):
    """Everything that was measured of one network on one machine."""

    machine: dict[str, str | int | float]
    threads: Count
    model: str
    example: str
    sites: tuple[str, ...]
    networks: dict[str, TimedNetwork]
    samples: tuple[Sample, ...]
    barred: dict[str, str] = {}
    pruned: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        for key, network in self.networks.items():
            if unknown := sorted(set(network.forms) - set(self.sites)):
                raise ValueError(f"network {key[:40]!r} changes {unknown[0][:40]!r}, which is not among the sites")
            if any(not -1 <= node.conv < len(network.nodes) for node in network.nodes):
                raise ValueError(f"network {key[:40]!r} has a node that belongs to a node that does not exist")
        if unknown := sorted({sample.network for sample in self.samples} - set(self.networks)):
            raise ValueError(f"a sample is of network {unknown[0][:40]!r}, which is not in the file")

    @property
    def total_ms(self) -> float:
        """Return the milliseconds of the dense network, the median over the passes.

        Raises:
            LatencyError: it was not timed yet.
        """
        times = [sample.total_ms for sample in self.samples if sample.network == DENSE]
        if not times:
            raise LatencyError("has no measurements yet; run measure.py to its end first")
        return median(times)

    @property
    def passes(self) -> int:
        """Return the number of passes in which the dense network was timed."""
        return len({sample.number for sample in self.samples if sample.network == DENSE})

    def only(self, *networks: str) -> Measurements:
        """Return the samples of some networks."""
        return msgspec.structs.replace(self, samples=tuple(one for one in self.samples if one.network in networks))

    def select(self, precision: Precision, forms: Kinds = ()) -> Measurements:
        """Return what was measured of the networks of one precision, whose dense network is then called `DENSE`.

        Networks with forms of unknown kinds, which earlier calls may have left in a cache, are left out.

        Raises:
            LatencyError: the dense network of this precision is missing.
        """
        names = {
            key: DENSE if key == DENSE_OF[precision] else key
            for key, network in self.networks.items()
            if network.precision == precision and all(is_known(form, forms) for form in network.forms.values())
        }
        samples = tuple(
            msgspec.structs.replace(sample, network=names[sample.network])
            for sample in self.samples
            if sample.network in names
        )
        if samples and DENSE not in names.values():
            raise LatencyError(f"the dense network of {precision} is not in the file; measure again")
        networks = {name: self.networks[key] for key, name in names.items()}
        return msgspec.structs.replace(self, networks=networks, samples=samples)


def read_json(path: Path) -> object:
    """Return what a JSON file holds.

    Raises:
        LatencyError: it cannot be read, or is not JSON.
    """
    try:
        return msgspec.json.decode(read_bytes(path))
    except OSError as error:
        raise LatencyError(f"{path}: cannot be read ({reason(error)})") from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise LatencyError(f"{path}: is damaged ({error}); take another copy, or measure again") from error


def check_types(values: object, kind: type[T], mark: str, version: int) -> T:
    """Return typed values from JSON.

    Args:
        values: the JSON.
        kind: what they should be.
        mark: the entry with the number of the format.
        version: the number that this version reads.

    Raises:
        LatencyError: another version wrote it, or a value is not what belongs in its place, which is named.
    """
    found = values.get(mark) if isinstance(values, dict) else None
    if found != version:
        raise LatencyError(f"has {mark} {found!r}, and this version reads {version}; measure again")
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        raise LatencyError(f"is damaged ({error}); take another copy, or measure again") from error
