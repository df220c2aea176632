"""Public functions in whatever state the process is; after them nothing of the caller's has changed."""

from __future__ import annotations

import ast
import copy
import functools
import itertools
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import convsurgeon as cs
from tests import nets

X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(24, 3, 12, 12, generator=torch.Generator().manual_seed(1))
FORMS = [cs.DepthwiseSeparable(rank=2)]


@contextmanager
def _float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def _on_meta() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


STATES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "float64 by default": _float64,
    "meta by default": _on_meta,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


def _model() -> nn.Module:
    torch.manual_seed(3)
    return nets.Plain().eval()


def _convert(model: nn.Module, images: object = IMAGES, **how: Any) -> cs.Result:
    return cs.convert(model, X, calibration=images, progress=False, **how)


def _by_forms(_: Path) -> Any:
    return _convert(_model(), forms=FORMS).model.state_dict()


def _by_budget(_: Path) -> Any:
    return _convert(_model(), goal=cs.Budget(macs=0.5)).model.state_dict()


def _synthetic(_: Path) -> Any:
    return _convert(_model(), cs.Images(limit=12), forms=FORMS).model.state_dict()


def _recovered(_: Path) -> Any:
    result = _convert(_model(), forms=FORMS)
    return cs.recover(result, IMAGES, recipe=cs.Recipe(epochs=1), progress=False).model.state_dict()


def _swept(_: Path) -> Any:
    return cs.sweep(_model(), X, calibration=IMAGES, shares=[0.6], progress=False).table.rows


def _looked_at(_: Path) -> Any:
    model = _model()
    made = cs.plan(model, X, forms=FORMS)
    linear = cs.linear_as_conv(model, X, min_weights=1)
    return cs.inspect(model, X).rows, made.to_dict(), cs.rebuild(model, made).state_dict(), linear.state_dict()


def _exported(folder: Path) -> Any:
    result = _convert(_model(), False, forms=FORMS)
    bundle = cs.export(result, folder / "out", int8=True, calibration=IMAGES, pairs=0, progress=False)
    return {path.name: path.read_bytes() for path in bundle.folder.glob("*.onnx")}


def _from_file(folder: Path) -> Any:
    path = cs.onnx.export(_model(), X, folder / "in.onnx").path
    return cs.convert(path, calibration=IMAGES, forms=FORMS, progress=False).model.state_dict()


CALLS = [_by_forms, _by_budget, _synthetic, _recovered, _swept, _looked_at, _exported, _from_file]


@functools.cache
def _alone(call: Callable[[Path], Any]) -> Any:
    """Return what a call gives in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        return call(Path(folder))


def _assert_same(one: Any, two: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        for key, value in one.items():
            _assert_same(value, two[key])
    elif isinstance(one, tuple | list):
        assert len(one) == len(two)
        for left, right in zip(one, two, strict=True):
            _assert_same(left, right)
    elif isinstance(one, Tensor):
        assert not one.is_inference()
        assert one.dtype == two.dtype
        assert torch.equal(one, two)
    else:
        assert one == two


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("call", CALLS)
def test_the_result_is_the_same_to_the_bit(
    call: Callable[[Path], Any], state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = _alone(call)
    monkeypatch.setitem(globals(), "_model", functools.partial(copy.deepcopy, _model()))
    with STATES[state]():
        found = call(tmp_path)
    _assert_same(found, wanted)


def test_what_is_made_in_inference_mode_is_copied() -> None:
    with torch.inference_mode():
        model, example, images = _model(), X.clone(), IMAGES.clone()
        result = cs.convert(model, example, calibration=images, forms=FORMS, progress=False)
    _assert_same(result.model.state_dict(), _alone(_by_forms))
    assert all(parameter.is_inference() for parameter in model.parameters())
    result.model(X).sum().backward()


MAKERS = frozenset({"arange", "randperm", "randint"})
TYPED = frozenset(
    ("rand", "randn", "zeros", "ones", "empty", "full", "eye", "linspace", "tensor", "fftfreq", "rfftfreq")
)
"""Functions of torch that ask for the default device, and those that ask for the default dtype, too."""


def test_every_tensor_that_is_made_says_its_device_and_dtype() -> None:
    silent = []
    for path in sorted(Path(cs.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if ast.unparse(node.func.value) not in ("torch", "torch.fft") or node.func.attr not in MAKERS | TYPED:
                continue
            said = {keyword.arg for keyword in node.keywords}
            if not said >= {"device", *(["dtype"] if node.func.attr in TYPED else [])}:
                silent.append(f"{path.name}:{node.lineno}: {ast.unparse(node)}")
    assert not silent


def _process() -> dict[str, Any]:
    """Whatever of the process is the caller's."""
    return {
        "chance": (torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()),
        "defaults": (torch.get_default_dtype(), torch.get_default_device()),
        "threads": (torch.get_num_threads(), threading.active_count()),
        "determinism": torch.are_deterministic_algorithms_enabled(),
        "warnings": list(warnings.filters),
        "logging": (
            [(name, logging.getLogger(name).level) for name in ("root", "torch.onnx", "torch.fx", "onnxscript")],
            list(logging.root.handlers),
            list(logging.root.filters),
        ),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "path": list(sys.path),
        "streams": (sys.stdout, sys.stderr),
        "environment": dict(os.environ),
        "folder": Path.cwd(),
        "recursion": sys.getrecursionlimit(),
        "modules": (nn.Module.__call__, nn.Module.__getattr__),
        "hooks": {
            name: dict(held)
            for name, held in vars(nn.modules.module).items()
            if name.startswith("_global") and isinstance(held, dict)
        },
    }


def _broken(_: Path) -> Any:
    """Fail in the midst of the work."""
    runs = itertools.count()

    def stop(*_: Any) -> None:
        if next(runs) > 6:
            raise RuntimeError("enough")

    model = _model()
    model.register_forward_pre_hook(stop)
    with pytest.raises(Exception, match="enough"):
        _convert(model, forms=FORMS)


@pytest.mark.parametrize("call", [*CALLS, _broken])
@pytest.mark.parametrize("state", ["", "float64 by default"])
def test_the_process_is_as_it_was(call: Callable[[Path], Any], state: str, tmp_path: Path) -> None:
    copied = functools.partial(copy.deepcopy, _model())  # made once, with torch's random numbers
    with pytest.MonkeyPatch.context() as patch, STATES[state]() if state else torch.enable_grad():
        patch.setitem(globals(), "_model", copied)
        before = _process()
        call(tmp_path)
        after = _process()
    assert {key: value for key, value in after.items() if value != before[key]} == {}


@pytest.mark.parametrize("gone", [("stderr",), ("stdout",), ("stderr", "stdout")])
def test_without_streams(gone: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in gone:
        monkeypatch.setattr(sys, name, None)  # as pythonw and services have it
    result = cs.convert(_model(), X, calibration=IMAGES, forms=FORMS)
    assert result.changes
    cs.recover(result, IMAGES, recipe=cs.Recipe(epochs=1))


@pytest.mark.filterwarnings("ignore:Branching. torch.export fails")
def test_conversions_in_several_threads_are_what_they_are_alone() -> None:
    before = nn.Module.__call__, nn.Module.__getattr__
    models = [_model(), nets.Branching().eval(), nets.Shared().eval(), nets.Plain().eval()]
    alone = [_convert(model, goal=cs.Budget(macs=0.6)).model.state_dict() for model in models]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda model: _convert(model, goal=cs.Budget(macs=0.6)).model.state_dict(), models))
    _assert_same(together, alone)
    assert (nn.Module.__call__, nn.Module.__getattr__) == before


def test_where_python_may_recurse_little_it_ends() -> None:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(200)
    try:
        with ThreadPoolExecutor(1) as pool:  # with a stack of its own, not pytest's
            assert pool.submit(_convert, _model(), forms=FORMS).result(timeout=200).changes
    finally:
        sys.setrecursionlimit(before)


EVERY_WARNING = """
import sys
import torch
from torch import nn
import convsurgeon as cs
from convsurgeon.cli.main import main

images = torch.randn(24, 3, 12, 12)
model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()
for goal in (None, cs.Budget(macs=0.6)):
    result = cs.convert(model, images[:1], calibration=images, goal=goal)
cs.recover(result, images, recipe=cs.Recipe(epochs=1))
cs.export(result, sys.argv[1] + "/out", int8=True, calibration=images, pairs=0)
cs.convert(sys.argv[1] + "/out/original.onnx", calibration=images, forms=[cs.DepthwiseSeparable(rank=1)])
sys.exit(main(["inspect", sys.argv[1] + "/out/model.onnx"]))
"""


def test_nothing_warns_even_while_it_is_imported(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    command = [sys.executable, "-c", EVERY_WARNING, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
