"""Whether the measurements in a file can have been taken: every value of its kind, every time a time.

A `device.json` comes from another machine, and a cache outlives the program that wrote it. What is wrong in them is
told by its place; what is not looked at here (a form's own fields) is told by who reads it.
"""

from __future__ import annotations

from typing import Any

from convsurgeon.base.errors import LatencyError
from convsurgeon.onnx.standalone import DENSE, DENSE_OF, Raw


def check(raw: Raw) -> None:
    """Goes through all that is read of measurements.

    Raises:
        LatencyError: names the first place that holds something else than belongs there.
    """
    for name in ("sites", "samples"):
        _of(list, raw.get(name), name)
    for name in ("networks", "machine"):
        _of(dict, raw.get(name), name)
    for name in ("model", "example"):
        _of(str, raw.get(name), name)
    _count(raw.get("threads"), "threads", 1)
    for index, site in enumerate(raw["sites"]):
        _of(str, site, f"site {index}")
    for key, network in raw["networks"].items():
        _network(network, f"network {key[:40]}", raw["sites"])
    for index, sample in enumerate(raw["samples"]):
        _sample(sample, f"sample {index}", raw["networks"])
    _left_out(raw)


def _network(network: Any, where: str, sites: list[str]) -> None:
    _of(dict, network, where)
    _of(str, network.get("label"), f"{where}: label")
    if network.get("precision", "fp32") not in DENSE_OF:
        raise LatencyError(f"measurements: {where}: precision {_shown(network['precision'])} is none; {_AGAIN}")
    for site, form in _of(dict, network.get("forms"), f"{where}: forms").items():
        _of(dict, form, f"{where}: form of {site[:40]}")
        if site not in sites:
            raise LatencyError(f"measurements: {where}: {site[:40]} is none of the sites; {_AGAIN}")
    nodes = _of(list, network.get("nodes"), f"{where}: nodes")
    for index, node in enumerate(nodes):
        place = f"{where}: node {index}"
        if len(_of(list, node, place)) != 4:
            raise LatencyError(f"measurements: {place}: expected 4 values, found {len(node)}; {_AGAIN}")
        for value in node[:3]:
            _of(str, value, place)
        if _count(node[3], place, -1) >= len(nodes):
            raise LatencyError(f"measurements: {place}: belongs to node {node[3]}, of {len(nodes)}; {_AGAIN}")


def _sample(sample: Any, where: str, networks: dict[str, Any]) -> None:
    _of(dict, sample, where)
    _count(sample.get("pass"), f"{where}: pass", 0)
    if _of(str, sample.get("network"), f"{where}: network") not in networks:
        raise LatencyError(f"measurements: {where}: of a network that is not in the file; {_AGAIN}")
    for name in ("total_ms", "dense_ms"):
        if _time(sample.get(name), f"{where}: {name}") == 0:
            raise LatencyError(f"measurements: {where}: {name}: no network takes 0 ms; {_AGAIN}")
    for index, node in enumerate(_of(list, sample.get("nodes"), f"{where}: nodes")):
        place = f"{where}: node {index}"
        if len(_of(list, node, place)) != 3:
            raise LatencyError(f"measurements: {place}: expected 3 values, found {len(node)}; {_AGAIN}")
        for value in node[:2]:
            _of(str, value, place)
        _time(node[2], place)


def _left_out(raw: Raw) -> None:
    """What was not timed, and why: files of older versions do not say."""
    for site, reason in _of(dict, raw.get("barred", {}), "barred").items():
        _of(str, reason, f"barred: {site[:40]}")
    for index, pair in enumerate(_of(list, raw.get("pruned", []), "pruned")):
        if len(_of(list, pair, f"pruned {index}")) != 2 or not all(isinstance(word, str) for word in pair):
            raise LatencyError(f"measurements: pruned {index}: expected a site and a form; {_AGAIN}")
    if raw["samples"] and DENSE not in raw["networks"]:
        raise LatencyError(f"measurements: the dense network is not in the file; {_AGAIN}")


def _of(kind: type, value: Any, where: str) -> Any:
    if type(value) is not kind:
        raise LatencyError(f"measurements: {where}: expected {_WORDS[kind]}, found {_shown(value)}; {_AGAIN}")
    return value


def _count(value: Any, where: str, least: int) -> int:
    if type(value) is not int or not least <= value < _MOST:
        raise LatencyError(f"measurements: {where}: expected a number from {least}, found {_shown(value)}; {_AGAIN}")
    return value


def _time(value: Any, where: str) -> float:
    """Milliseconds, of which nothing takes more than a day."""
    if type(value) not in (int, float) or not 0 <= value < _DAY_MS:
        raise LatencyError(f"measurements: {where}: {_shown(value)} is no time in milliseconds; {_AGAIN}")
    return float(value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


_AGAIN = "take another copy, or measure again"
_WORDS: dict[type, str] = {dict: "an object", list: "a list", str: "text"}
_MOST, _DAY_MS = 1 << 31, 8.64e7
