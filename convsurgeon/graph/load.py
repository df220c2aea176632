"""Names and files -> a model with its weights. Nothing that a weight file says is ever executed."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import warnings
import zipfile
from collections.abc import Callable, Collection, Container, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from convsurgeon.base.errors import LoadError, describe, nearest, reason

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "params")
_COUNTER = "n_averaged"
"""What torch's AveragedModel keeps beside the weights."""


def load_model(name: str, arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """Build a model from its name, with keyword arguments for the factory.

    Names are `package.module:factory`, `path/to/file.py:factory`, `timm:NAME` and `torchvision:NAME`, where the last
    may begin with a family (`torchvision:detection.ssd300_vgg16`).
    """
    where, _, factory = name.partition(":")
    arguments = dict(arguments or {})
    if where == "torchvision" and factory:
        family, _, factory = f"models.{factory}".rpartition(".")  # detection.ssd300_vgg16, segmentation.fcn_resnet50
        found = _attribute(_module(f"torchvision.{family}", name), factory, name)
    elif where == "timm" and factory:
        found = _attribute(_module("timm", name), "create_model", name)
        arguments = {"model_name": factory, **arguments}
    else:
        found = load_function(name)
    made = found if isinstance(found, nn.Module) else _call(name, found, arguments)
    if not isinstance(made, nn.Module):
        raise LoadError(f"{name}: gives a {type(made).__name__}, not a torch.nn.Module; name a function that gives one")
    return made


def load_function(name: str) -> Any:
    """Return what `package.module:attribute` or `path/to/file.py:attribute` names."""
    where, colon, attribute = name.rpartition(":")
    if not colon or not where or not attribute:
        raise LoadError(
            f"{name}: expected package.module:factory, path/to/file.py:factory, torchvision:NAME or timm:NAME"
        )
    module = _file(Path(where)) if where.endswith(".py") else _module(where, name)
    return _attribute(module, attribute, name)


def load_weights(model: nn.Module, path: str | Path, optional: Container[str] = ()) -> None:
    """Load a safetensors file, or a checkpoint of tensors and plain values only, into a model.

    `state_dict` and `model` wrappers are taken off, and what stands before all names (`module.`). Names in `optional`
    may be missing.
    """
    own = model.state_dict()
    tensors = _without_prefix(_unwrap(_read(Path(path)), Path(path)), own)
    asked = [name for name in own if name not in optional and not name.endswith("num_batches_tracked")]
    missing = [name for name in asked if name not in tensors]
    unexpected = [name for name in tensors if name not in own]
    shapes = [
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    parts = [("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)]
    if wrong := "; ".join(f"{len(names)} {word}: {_some(names)}" for word, names in parts if names):
        raise LoadError(f"{path}: the weights are not this model's: {wrong}; check the factory and its arguments")
    learned = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    broken = [name for name in own if name in tensors and not _whole(tensors[name], name in learned)]
    if broken:
        raise LoadError(f"{path}: NaN or infinity in {_some(broken)}; pass weights from before they diverged")
    model.load_state_dict(dict(tensors), strict=False)


def _whole(tensor: Tensor, learned: bool) -> bool:
    """Whether weights hold numbers; a buffer may hold infinity, as masks do."""
    return not tensor.is_floating_point() or not bool((~tensor.isfinite() if learned else tensor.isnan()).any())


def _read(path: Path) -> Any:
    if os.path.exists(path) and not path.is_file():  # noqa: PTH110  # Path.exists raises for a name that is too long
        raise LoadError(f"{path}: is a folder, a device or a pipe; pass a safetensors file or a checkpoint")
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except (OSError, ValueError) as error:  # a NUL in its name
        raise LoadError(f"{path}: cannot be read ({reason(error)}); pass a safetensors file or a checkpoint") from error
    if not head:
        raise LoadError(f"{path}: is empty; download or save it again")
    if head[8:9] == b"{" and head[:1] != b"\x80":
        try:
            return load_file(path)
        except (SafetensorError, ValueError, RuntimeError) as error:
            raise LoadError(f"{path}: is a damaged safetensors file ({error}); download or save it again") from error
    _refuse_programs(path)
    return _read_checkpoint(path)


def _read_checkpoint(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds here, KeyError and EOFError among them
        text = str(error)
        with path.open("rb") as file:
            pickled = file.read(2) in (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05")
        if pickled and ("weights_only" in text or "Weights only" in text or "Unsupported" in text):
            raise LoadError(
                f"{path}: holds pickled objects besides tensors, which loading would execute; "
                "save model.state_dict() with safetensors where you trust the file"
            ) from error
        raise LoadError(f"{path}: is not a weight file ({type(error).__name__}); pass safetensors") from error


def _refuse_programs(path: Path) -> None:
    """Refuse archives that hold code."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception:  # BadZipFile, UnicodeDecodeError, NotImplementedError, struct.error, ...: torch then says it
        return
    names = [entry.filename for entry in entries]
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):  # it may grow a thousandfold
        raise LoadError(f"{path}: is compressed, which torch.save does not do; save model.state_dict() again")
    if any("/code/" in name or name.endswith("constants.pkl") for name in names):
        raise LoadError(f"{path}: is a TorchScript archive, which holds code; save model.state_dict() instead")
    if any(name.endswith(("archive_format", "serialized_exported_program.json")) for name in names):
        raise LoadError(f"{path}: is an exported program (.pt2), which holds code; save model.state_dict() instead")


def _unwrap(loaded: Any, path: Path) -> dict[str, Tensor]:
    for _ in range(3):
        if isinstance(loaded, Mapping) and not _count(loaded):
            key = next((key for key in _WRAPPERS if isinstance(loaded.get(key), Mapping)), None)
            if key is None:
                break
            others = [str(name) for name, held in loaded.items() if name != key and _count(held) >= _count(loaded[key])]
            loaded = loaded[key]
            if others and _count(loaded):  # averaged ones (EMA), most often
                warnings.warn(
                    f"{path}: holds weights under {key!r} and {_some(others)}; {key!r} is loaded; save the other by "
                    "itself if it is the one that is meant",
                    stacklevel=2,
                )
    if isinstance(loaded, nn.Module) or not isinstance(loaded, Mapping):
        raise LoadError(f"{path}: holds a {type(loaded).__name__}, not a state dict; save model.state_dict()")
    tensors = {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}
    if not tensors:
        raise LoadError(f"{path}: holds no tensors; pass a file with the model's state dict")
    return tensors


def _count(held: object) -> int:
    """Return how many tensors a mapping holds."""
    return sum(isinstance(value, Tensor) for value in held.values()) if isinstance(held, Mapping) else 0


def _without_prefix(tensors: dict[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    """Take off what a wrapper, or a module that held the network, has put before all names."""
    while not any(name in own for name in tensors):
        named = {name.partition(".")[::2]: tensor for name, tensor in tensors.items() if name != _COUNTER}
        if len({head for head, _ in named}) != 1 or not all(rest for _, rest in named):
            break
        tensors = {rest: tensor for (_, rest), tensor in named.items()}
    return tensors


def _some(names: Iterable[str], most: int = 4) -> str:
    listed = list(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")


def _module(name: str, asked: str) -> ModuleType:
    sys.path.insert(0, "")  # the current folder, as `python -m` does
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # whatever an import raises
        raise LoadError(f"{asked}: {name} cannot be imported ({describe(error)})") from error
    finally:
        sys.path.remove("")


def _file(path: Path) -> ModuleType:
    if not path.is_file():
        raise LoadError(f"{path}: no such file; pass path/to/file.py:factory")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    stale = sys.modules.get(path.stem)
    if stale is None or getattr(stale, "__file__", None) == module.__file__:  # the same file, edited since
        sys.modules[path.stem] = module  # dataclasses and pickle look a class's module up by name
    sys.path.insert(0, folder := str(path.resolve().parent))  # for what it imports from beside it, as for `python FILE`
    try:
        spec.loader.exec_module(module)
    except BaseException as error:  # whatever the file raises; a script may end the process
        if sys.modules.get(path.stem) is module:  # half of it has run
            del sys.modules[path.stem]
            if stale is not None:
                sys.modules[path.stem] = stale
        if not isinstance(error, Exception | SystemExit):
            raise
        raise LoadError(f"{path}: fails when it is imported ({describe(error)})") from error
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
    return module


def _attribute(module: ModuleType, name: str, asked: str) -> Any:
    if not hasattr(module, name):
        names = [known for known in vars(module) if not known.startswith("_")]
        raise LoadError(f"{asked}: {module.__name__} has no {name!r}{nearest(name, names)}")
    return getattr(module, name)


def _call(asked: str, factory: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    if not callable(factory):
        raise LoadError(f"{asked}: is a {type(factory).__name__}; name a function that returns a model")
    try:
        return factory(**arguments)
    except (Exception, SystemExit) as error:  # whatever the factory raises
        raise LoadError(f"{asked}: the factory fails ({describe(error)})") from error
