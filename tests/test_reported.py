"""Situations that users of this and neighbouring tools report: each is right, or one line of the package's own."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, ValueInfoProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

import convsurgeon as cs
from convsurgeon.base import files
from convsurgeon.base.normal import in_normal_mode
from convsurgeon.cli.main import main
from convsurgeon.graph.load import load_model
from tests import nets

X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(24, 3, 12, 12, generator=torch.Generator().manual_seed(1))
FORMS = [cs.DepthwiseSeparable(rank=2)]


def _convert(model: Any, example: Any = X, images: object = IMAGES) -> cs.Result:
    return cs.convert(model, example, calibration=images, forms=FORMS, progress=False)


# Networks


class Remembering(nets.Plain):
    """A recurrent network that keeps its state."""

    state: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        found = super().forward(x)
        self.state = found if self.state is None else self.state * 0.5 + found
        return self.state


class Dropping(nets.Plain):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x), 0.5)


class Autocast(nets.Plain):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x)


class Flat(nets.Plain):
    """A batch norm without epsilon."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(16, eps=0.0)


def test_state_between_forwards_is_refused() -> None:
    with pytest.raises(cs.errors.CaptureError, match="Remembering"):
        _convert(Remembering().eval())


def test_random_numbers_in_eval_mode_are_warned_of_first() -> None:
    with pytest.warns(UserWarning, match="Dropping draws random numbers"):
        _convert(Dropping().eval(), images=False)


def test_autocast_inside_of_the_forward_is_converted_and_not_exported(tmp_path: Path) -> None:
    result = _convert(Autocast().eval(), images=False)
    assert result.changes
    with pytest.raises(cs.errors.ExportError, match="bfloat16"):
        cs.onnx.export(result.model, X, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_a_norm_without_epsilon_is_no_hindrance() -> None:
    assert _convert(Flat().eval()).changes


class Output(dict[str, Any]):
    """As transformers give it: a dict whose values are attributes, too."""


class FromHub(nets.Plain):
    def forward(self, x: Tensor) -> Any:
        return Output(logits=super().forward(x), hidden_states=None)


def test_outputs_in_a_mapping_and_weights_without_a_plan(tmp_path: Path) -> None:
    torch.utils._pytree.register_pytree_node(
        Output, lambda o: (list(o.values()), list(o)), lambda v, k: Output(zip(k, v, strict=True))
    )
    original = FromHub().eval()
    result = _convert(original)
    result.plan.save(tmp_path / "plan.json")
    fresh = cs.rebuild(FromHub().eval(), cs.Plan.load(tmp_path / "plan.json"))
    fresh.load_state_dict(result.model.state_dict())
    assert torch.equal(fresh(X)["logits"], result.model(X)["logits"])


def test_the_frames_of_a_video_are_run_as_a_batch() -> None:
    class Video(nets.Plain):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(1)

    result = _convert(Video().eval(), torch.randn(1, 4, 3, 12, 12), torch.randn(8, 4, 3, 12, 12))
    assert set(result.changes) == {"body", "down"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_quantised_linear_layer_may_follow_fitted_convs() -> None:
    assert _convert(torch.ao.quantization.quantize_dynamic(nets.Plain().eval())).changes


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("form", [*FORMS, cs.CP(rank=8), cs.Blueprint(rank=2), cs.BlueprintSubspace(rank=1)])
def test_every_form_can_be_scripted(form: cs.Form) -> None:
    model = cs.convert(nets.Plain().eval(), X, calibration=False, forms=[form], policy=cs.select.everything()).model
    torch.testing.assert_close(torch.jit.script(model)(X), model(X))


# Files


def _file(path: Path, outputs: list[ValueInfoProto] | None = None, **how: Any) -> Path:
    random = np.random.default_rng(0)
    weights = {"w1": (16, 3, 3, 3), "w2": (16, 16, 3, 3)}
    stored = [numpy_helper.from_array(random.normal(size=s).astype("float32") / 9, n) for n, s in weights.items()]
    sparse = how.pop("sparse", [])
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["y"], pads=[1] * 4),
        *how.pop("nodes", []),
    ]
    sizes = how.pop("sizes", [1, 3, 12, 12])
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, sizes), *how.pop("inputs", [])]
    made = outputs or [helper.make_tensor_value_info("y", TensorProto.FLOAT, [sizes[0], 16, *sizes[2:]])]
    kept = [one for one in stored if one.name not in {item.values.name for item in sparse}]
    graph = helper.make_graph(nodes, "g", inputs, made, kept, sparse_initializer=sparse)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def _sparse() -> Any:
    values = numpy_helper.from_array(np.array([1.0, 2.0, -1.0], "float32"), "w2")
    return helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([0, 700, 1500]), "w2.at"), [16, 16, 3, 3])


ODD: dict[str, dict[str, Any]] = {
    "sizes below zero": {"sizes": [-1, 3, -1, -1]},
    "batch below zero": {"sizes": [-1, 3, 12, 12]},
    "an output without a shape": {"outputs": [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]},
    "an output without a type": {"outputs": [ValueInfoProto(name="y")]},
    "sparse weights": {"sparse": [_sparse()]},
    "a weight that is an input": {"inputs": [helper.make_tensor_value_info("w2", TensorProto.FLOAT, [16, 16, 3, 3])]},
}


@pytest.mark.parametrize("outputs", ["an output without a shape", "an output without a type"])
def test_an_output_may_state_nothing_where_weights_lie_outside(outputs: str, tmp_path: Path) -> None:
    model = onnx.load(_file(tmp_path / "in.onnx", **ODD[outputs]))
    onnx.save(model, tmp_path / "out.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    assert set(_convert(tmp_path / "out.onnx", X[:1], False).changes) == {"w2"}
    assert cs.onnx.quantize(tmp_path / "out.onnx", tmp_path / "small.onnx", IMAGES).path.exists()
    (tmp_path / "w.bin").write_bytes(b"short")
    with pytest.raises(cs.errors.LoadError, match=r"out\.onnx"):
        _convert(tmp_path / "out.onnx", X[:1], False)


def test_what_is_quantised_already_is_not_quantised_again(tmp_path: Path) -> None:
    made = cs.onnx.quantize(_file(tmp_path / "float.onnx"), tmp_path / "small.onnx", IMAGES)
    with pytest.raises(cs.errors.ExportError, match=r"small\.onnx: .* is quantised already"):
        cs.onnx.quantize(made.path, tmp_path / "smaller.onnx", IMAGES)


@pytest.mark.parametrize("kind", ODD)
def test_odd_but_legal_files_are_converted_and_quantised(kind: str, tmp_path: Path) -> None:
    path = _file(tmp_path / "odd.onnx", **ODD[kind])
    result = _convert(path, X[:1], IMAGES)
    assert set(result.changes) == {"w2"}
    assert any("w2" in note for note in result.report.notes) is (kind == "a weight that is an input")
    assert cs.onnx.export(result.model, X[:1], tmp_path / "new.onnx").parity.passed
    assert cs.onnx.quantize(path, tmp_path / "small.onnx", IMAGES).path.exists()


_NORM = helper.make_node("BatchNormalization", ["y", *"smcv"[:1] * 4], ["z", "z1", "z2"], training_mode=1)
REFUSED: dict[str, dict[str, Any]] = {
    "s": {
        "nodes": [helper.make_node("SequenceConstruct", ["y", "b"], ["s"])],
        "outputs": [helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)],
    },
    "t": {
        "nodes": [helper.make_node("Cast", ["y"], ["t"], to=TensorProto.STRING)],
        "outputs": [helper.make_tensor_value_info("t", TensorProto.STRING, None)],
    },
    "d": {
        "nodes": [
            helper.make_node("Constant", [], ["share"], value=numpy_helper.from_array(np.float32(0.5))),
            helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True))),
            helper.make_node("Dropout", ["y", "share", "yes"], ["d"]),
        ],
        "outputs": [helper.make_tensor_value_info("d", TensorProto.FLOAT, None)],
    },
    "z": {
        "nodes": [
            helper.make_node("Constant", [], ["s"], value=numpy_helper.from_array(np.ones(16, "float32"))),
            _NORM,
        ],
        "outputs": [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
    },
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_export_could_write_is_refused_when_it_is_read(name: str, tmp_path: Path) -> None:
    path = _file(tmp_path / "no.onnx", **REFUSED[name])
    with pytest.raises(cs.ConvSurgeonError, match=rf"no.onnx: .*\b{name}\b"):
        cs.capture(path, X[:1])


def test_a_plan_s_error_is_one_exception(tmp_path: Path) -> None:
    made = cs.plan(nets.Plain(), X, forms=FORMS)
    made.save(tmp_path / "plan.json")
    text = (tmp_path / "plan.json").read_text().replace('"rank": 2', '"rank": -3', 1)
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(cs.errors.PlanError, match="rank") as caught:
        cs.Plan.load(tmp_path / "plan.json")
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_an_edited_file_replaces_the_stale_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "edited_net", raising=False)
    path = tmp_path / "edited_net.py"
    for width in (4, 8):
        path.write_text(
            f"from torch import nn\nWIDTH = {width}\ndef make(): return nn.Sequential(nn.Conv2d(3, WIDTH, 3))"
        )
        load_model(f"{path}:make")
        assert width == sys.modules["edited_net"].WIDTH
    path.write_text("WIDTH = 16\nraise ValueError('half')")
    with pytest.raises(cs.errors.LoadError, match="half"):
        load_model(f"{path}:make")
    assert sys.modules["edited_net"].WIDTH == 8
    monkeypatch.delitem(sys.modules, "edited_net")


# Places and limits


def test_a_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(cs.errors.WriteError, match="aaa"):
        files.check_file(tmp_path / ("a" * 300), overwrite=False)
    with pytest.raises(cs.errors.WriteError, match="aaa"):
        files.check_folder(tmp_path / ("a" * 300), overwrite=False)


def test_a_folder_that_was_deleted_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(cs.errors.WriteError, match=r"net\.onnx"):
        cs.onnx.export(nets.Plain().eval(), X, "net.onnx")


def test_a_command_in_a_folder_that_was_deleted_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["inspect", str(_file(tmp_path / "net.onnx"))]) == 1  # and not killed by what torch loads
    (line,) = capsys.readouterr().err.splitlines()
    assert "working directory" in line


def test_no_place_for_temporary_files_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(*_: Any, **__: Any) -> None:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", nowhere)
    with pytest.raises(cs.errors.WriteError, match="TMPDIR"), files.scratch():
        pass


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
        BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)),
        RuntimeError("can't start new thread"),
        OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
    ],
)
def test_what_the_system_refuses_is_one_line(error: Exception) -> None:
    @in_normal_mode
    def work() -> None:
        error.add_note("layer4.0.conv1")
        raise error

    with pytest.raises(cs.errors.ResourceError, match=r"layer4|ulimit") as caught:
        work()
    assert "\n" not in str(caught.value)


def test_other_errors_stay_what_they_are() -> None:
    @in_normal_mode
    def work() -> None:
        raise RuntimeError("the user's own")

    with pytest.raises(RuntimeError, match="the user's own"):
        work()
