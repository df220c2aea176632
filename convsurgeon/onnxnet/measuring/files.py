"""The files of a folder for a device: networks and their manifest, and the results so far."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from .engine import Engine, MeasureError
from .place import machine, same_machine

FORMAT = 2
MANIFEST, RESULT, DENSE = "manifest.json", "device.json", "dense"
DENSE_OF = {"fp32": DENSE, "int8": "dense-int8"}
"""Precision -> the network as it is, which all others of that precision are timed beside."""

_COPIED = ("network", "model", "example", "sites", "barred")
"""What the results take over from the manifest."""

Raw = dict[str, Any]


def read_manifest(folder: Path) -> Raw:
    """Return the folder's list of networks, if its files are unchanged."""
    manifest = read_json(folder / MANIFEST, "convsurgeon_candidates")
    try:
        files = {**manifest["files"]}
        names = {network["file"] for network in manifest["networks"].values()} | set(files)
        _ = [manifest["networks"][dense_of(one)] for one in manifest["networks"].values()]
        _ = manifest["inputs"][0], [manifest[name] for name in _COPIED]
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise MeasureError(f"{folder / MANIFEST}: is damaged ({error!r}); copy the whole folder again") from None
    for name in sorted(names):
        path = folder / str(name)
        if Path(str(name)).name != name or not path.is_file():
            raise MeasureError(f"{path}: is missing; copy the whole folder again")
        if digest(path) != files.get(name):
            raise MeasureError(f"{path}: is damaged (checksum); copy the whole folder again")
    return manifest


def read_json(path: Path, mark: str) -> Raw:
    """Return a JSON object that bears a mark with this format's number."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MeasureError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError):
        raise MeasureError(f"{path}: is damaged (not JSON); delete it, or take another copy") from None
    if not isinstance(values, dict) or mark not in values:
        raise MeasureError(f"{path}: is another kind of file (it lacks {mark}); pass the right one")
    if values[mark] != FORMAT:
        raise MeasureError(f"{path}: has format {values[mark]!r}, expected {FORMAT}; make it again")
    return values


def write_json(path: Path, values: Raw) -> None:
    """Write JSON under a temporary name and rename it, so that the file is never half written."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(json.dumps(values, separators=(",", ":")))  # much faster than to dump piece by piece
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink()
        raise


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def resume(manifest: Raw, target: Path, engine: Engine, power: str = "") -> Raw:
    """Return the results so far, with the manifest's networks added; none if the target does not exist."""
    here = machine(engine.provider)
    setting: Raw = {"threads": engine.threads, "provider": engine.provider, "options": engine.options, "power": power}
    empty: Raw = {"convsurgeon_device": FORMAT, "machine": here, "networks": {}, "samples": [], **setting}
    raw: Raw = read_json(target, "convsurgeon_device") if target.exists() else empty
    try:
        fits = same_machine(raw["machine"], here) and all(raw.get(name, one) == one for name, one in setting.items())
        fits = fits and raw.get("network", manifest["network"]) == manifest["network"]
        raw["networks"] = {**raw["networks"], **manifest["networks"]}
        known = {(sample["pass"], sample["network"]) for sample in raw["samples"]}
    except (KeyError, TypeError, AttributeError) as error:
        raise MeasureError(f"{target}: is damaged ({error!r}); delete it to measure again") from None
    if not fits and known:
        raise MeasureError(f"{target}: was measured elsewhere or otherwise; move it away, or choose another --out")
    return {**raw, **{name: manifest[name] for name in _COPIED}}


def missing(manifest: Raw, raw: Raw, number: int) -> list[str]:
    """Return the candidates that a pass has not timed yet."""
    known = {sample["network"] for sample in raw["samples"] if sample["pass"] == number}
    return [name for name in manifest["networks"] if name not in known and name not in DENSE_OF.values()]


def dense_of(network: Raw) -> str:
    """Return the key of the network as it is, in the precision of this one."""
    return DENSE_OF[network.get("precision", "fp32")]
