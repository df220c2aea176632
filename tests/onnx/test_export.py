from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import ModelProto
from torch import Tensor, nn

import convsurgeon as cs
from convsurgeon.base.errors import CaptureError, ExportError, ParityError, WriteError
from convsurgeon.onnx import exporter as export_module
from convsurgeon.onnx.exporter import OnnxFile, export, write_file
from convsurgeon.onnx.metadata import state_sha256
from convsurgeon.onnx.parity import Parity, ParityCase
from tests import hostile, nets
from tests.onnx.small import net

IMAGE = (1, 3, 12, 12)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> OnnxFile:
    path = tmp_path_factory.mktemp("export") / "net.onnx"
    return export(net(), torch.randn(IMAGE), path, metadata={"plan": "abc", "input": "x"})


@pytest.fixture(scope="module")
def model(written: OnnxFile) -> ModelProto:
    return onnx.load(written.path)


def tiny() -> nn.Module:
    """Enough where only the file matters; it exports in half the time."""
    return nn.Conv2d(3, 4, 3)


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# What the file is


def test_the_figures_are_those_of_the_file(written: OnnxFile, model: ModelProto) -> None:
    assert (written.opset, written.ir_version) == (18, 8)
    assert model.ir_version == 8
    assert [(item.domain, item.version) for item in model.opset_import] == [("", 18)]
    assert written.size_bytes == written.path.stat().st_size
    assert written.inputs == (("x", IMAGE),)
    assert written.outputs == (("output", (1, 10)),)
    assert written.parity.passed
    assert leftovers(written.path.parent) == ["net.onnx"]
    assert written.parity.passed
    assert "opset 18" in str(written)


def test_producer_and_metadata(model: ModelProto) -> None:
    assert model.producer_name == "convsurgeon"
    assert model.producer_version
    facts = [(item.key, item.value) for item in model.metadata_props]
    assert facts[0] == ("input", "x")
    assert facts[1] == ("inputs", '[{"name":"x","shape":[1,3,12,12],"layout":"NCHW"}]')
    assert [key for key, _ in facts] == ["input", "inputs", "plan", "tool", "torch"]


def test_nodes_are_called_after_their_modules(model: ModelProto) -> None:
    assert [node.name for node in model.graph.node] == [
        "stem",
        "layer1.0.conv1.branches.1.depthwise",
        "layer1.0.conv1.branches.1.pointwise",
        "layer1.0.conv1.branches.0.depthwise",
        "layer1.0.conv1.branches.0.pointwise",
        "layer1.0.conv1.add",
        "layer1.0.relu",
        "layer1.0.conv2",
        "layer1.0.add",
        "layer1.0.relu_1",
        "pool",
        "reshape",
        "fc",
    ]


def test_values_are_called_after_their_nodes(model: ModelProto) -> None:
    for node in model.graph.node[:-1]:
        assert list(node.output) == [node.name]


@pytest.mark.parametrize(
    ("shape", "parts"),
    [
        ((1, 3, 9, 9), [nn.Conv2d(3, 16, 3), nn.PReLU(16), nn.ConvTranspose2d(16, 8, 4, 2), nn.PReLU(8)]),
        ((1, 3, 20), [nn.Conv1d(3, 16, 5), nn.PReLU(16), nn.Conv1d(16, 16, 5)]),
    ],
)
def test_no_name_has_a_space_which_ncnn_splits_lines_at(
    shape: tuple[int, ...], parts: list[nn.Module], tmp_path: Path
) -> None:
    before, forms = nn.Sequential(*parts).eval(), [cs.DepthwiseSeparable(rank=2)]
    how: dict[str, Any] = {"calibration": False, "progress": False}
    made = cs.convert(before, torch.zeros(shape), forms=forms, **how)
    assert made.changes
    export(made.model, torch.zeros(shape), tmp_path / "model.onnx")
    write_file(before, torch.zeros(shape), tmp_path / "dense.onnx", metadata={}, as_it_was=True)
    again = cs.convert(str(tmp_path / "dense.onnx"), forms=forms, **how)
    export(again.model, None, tmp_path / "again.onnx")
    for name in ("model.onnx", "again.onnx"):
        graph = onnx.load(tmp_path / name).graph
        assert len(shape) == 3 or not any(node.op_type == "PRelu" for node in graph.node)
        names = [one for node in graph.node for one in (node.name, *node.input, *node.output)]
        assert not [one for one in names if len(one.split()) > 1]


def test_batch_norms_go_into_plain_and_branched_convs(model: ModelProto) -> None:
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    biased = [node.name for node in model.graph.node if node.op_type == "Conv" and len(node.input) == 3]
    assert biased == ["stem", "layer1.0.conv1.branches.0.pointwise", "layer1.0.conv2"]
    names = {tensor.name for tensor in model.graph.initializer}
    assert {"layer1.0.conv2.weight", "layer1.0.conv2.bias", "layer1.0.conv1.branches.0.pointwise.bias"} <= names


def test_pooling_is_what_mobile_providers_take(model: ModelProto) -> None:
    kinds = [node.op_type for node in model.graph.node]
    assert "GlobalAveragePool" in kinds
    assert not {"ReduceMean", "Identity", "Dropout", "Cast", "Constant"} & set(kinds)


def test_every_value_has_its_static_shape(model: ModelProto) -> None:
    known = {info.name for info in model.graph.value_info}
    assert {node.output[0] for node in model.graph.node[:-1]} <= known


def test_nothing_local_is_in_the_file(written: OnnxFile) -> None:
    data = written.path.read_bytes()
    places = [Path.cwd(), Path.home(), Path(torch.__file__).parent, Path(__file__).parent, Path(sys.prefix)]
    for place in [*map(str, places), "site-packages", ".py", "pkg.torch", "stack_trace"]:
        assert place.encode() not in data


def test_the_same_model_gives_the_same_bytes(written: OnnxFile, tmp_path: Path) -> None:
    again = export(net(), torch.randn(IMAGE), tmp_path / "b.onnx", metadata={"input": "x", "plan": "abc"})
    assert again.path.read_bytes() == written.path.read_bytes()


def test_another_process_gives_the_same_bytes(written: OnnxFile, tmp_path: Path) -> None:
    code = (
        "import sys, torch; from tests.onnx.small import net; "
        "from convsurgeon.onnx.exporter import export; "
        "export(net(), torch.zeros(1, 3, 12, 12), sys.argv[1], metadata={'plan': 'abc', 'input': 'x'})"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "c.onnx")],
        **{"cwd": root, "env": {**os.environ, "PYTHONHASHSEED": "12345"}},
        **{"capture_output": True, "text": True, "check": True},
    )
    assert (done.stdout, done.stderr) == ("", "")
    assert (tmp_path / "c.onnx").read_bytes() == written.path.read_bytes()


# What it leaves alone


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    subject = net().train()
    subject.layer1[0].bn1.eval()  # type: ignore[index, union-attr]
    seen: list[int] = []
    subject.stem.register_forward_hook(lambda *_: seen.append(1))
    modes = [module.training for module in subject.modules()]
    hooks = [dict(module._forward_hooks) for module in subject.modules()]
    state = copy.deepcopy(subject.state_dict())
    grads = [parameter.requires_grad for parameter in subject.parameters()]
    random = torch.random.get_rng_state()
    export(subject, torch.zeros(IMAGE), tmp_path / "net.onnx")
    assert [module.training for module in subject.modules()] == modes
    assert [dict(module._forward_hooks) for module in subject.modules()] == hooks
    assert all(torch.equal(value, state[name]) for name, value in subject.state_dict().items())
    assert [parameter.requires_grad for parameter in subject.parameters()] == grads
    assert torch.equal(torch.random.get_rng_state(), random)


class Failing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("no such thing\nand a second line")


def test_modes_come_back_after_a_failure(tmp_path: Path) -> None:
    subject = Failing()
    subject.conv.eval()
    with pytest.raises(ExportError, match=r"^Failing: does not run on the example: RuntimeError: no such thing$"):
        export(subject, torch.zeros(IMAGE), tmp_path / "net.onnx")
    assert (subject.training, subject.conv.training) == (True, False)
    assert leftovers(tmp_path) == []


def test_weights_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    subject = net()
    with torch.no_grad():
        subject.stem.weight[0] = float("nan")
    with pytest.raises(ParityError, match=r"net.onnx: not written, stem.weight holds NaN or infinity; load weights"):
        export(subject, torch.zeros(IMAGE), tmp_path / "net.onnx")
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("buffer", [torch.ones(()).expand(1), torch.ones(3, 1).expand(3, 4), torch.ones(2, 3).T])
def test_the_hash_of_a_state_does_not_mind_strides(buffer: Tensor) -> None:
    one, two = net(), net()
    two.load_state_dict(one.state_dict())
    one.register_buffer("kept", buffer)
    two.register_buffer("kept", torch.empty(buffer.shape).copy_(buffer))
    assert state_sha256(one) == state_sha256(two)


class Detector(nn.Module):
    """As many rows as there are boxes."""

    def __init__(self, pick: Any) -> None:
        super().__init__()
        self.backbone = net()
        self.pick = pick

    def forward(self, x: Tensor) -> Tensor:
        return self.pick(self.backbone(x))


def test_what_torch_export_refuses_is_traced_and_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    subject = nets.Branching().eval()
    with pytest.warns(UserWarning, match=r"Branching: torch.export fails .*a run on the example was traced instead"):
        done = export(subject, torch.randn(IMAGE), tmp_path / "net.onnx")
    assert done.parity.passed
    model = onnx.load(done.path)
    assert {"stem", "body", "down"} <= {node.name for node in model.graph.node}
    assert {"stem.weight", "body.weight", "down.bias"} <= {tensor.name for tensor in model.graph.initializer}
    assert capfd.readouterr() == ("", "")


def test_what_is_traced_may_have_an_open_batch(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="was traced instead"):
        done = export(nets.Branching(), torch.randn(IMAGE), tmp_path / "net.onnx", dynamic="batch")
    assert done.inputs[0][1] == ("batch", *IMAGE[1:])


def test_a_branch_that_other_inputs_leave_is_no_file(tmp_path: Path) -> None:
    class TwoWays(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if x.abs().sum() > 0 else x + 3

    with (
        pytest.warns(UserWarning, match="was traced instead"),
        pytest.raises(ParityError, match="not written, parity fails by the fault of the export"),
    ):
        export(TwoWays(), torch.zeros(IMAGE), tmp_path / "net.onnx")
    assert leftovers(tmp_path) == []


def test_where_both_exporters_fail_it_says_what_to_export(tmp_path: Path) -> None:
    @torch.library.custom_op("convsurgeon_tests::boxes", mutates_args=())
    def boxes(x: Tensor) -> Tensor:
        return x[x > 0][:, None].repeat(1, 4)

    message = r"^Detector: torch.onnx.export failed: .*; traced, it failed too: .*; .* export model.backbone, do the"
    with pytest.raises(ExportError, match=message) as caught:
        export(Detector(boxes), torch.randn(IMAGE), tmp_path / "net.onnx")
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("kind", [hostile.WritesParameter, hostile.WritesData])
def test_a_forward_that_writes_to_its_weights_has_no_file(kind: type[nn.Module], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"^(scale|down.weight|head.weight): the forward writes to this parameter"):
        export(kind(), torch.randn(IMAGE), tmp_path / "net.onnx")


def test_it_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class Chatty(nn.Module):  # the exporter warns about an output that is None
        def forward(self, x: Tensor) -> dict[str, Any]:
            return {"a": x + 1, "b": None}

    export(Chatty(), torch.zeros(IMAGE), tmp_path / "net.onnx")
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


# Law 8: parity holds or nothing is written


def _failed(*_: object, **__: object) -> Parity:
    return Parity((ParityCase("example", True, 0.5, 6.0, False),), 1e-4, 80.0)


def test_law_8_a_failing_parity_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_module, "check_parity", _failed)
    with pytest.raises(ParityError, match=r"net.onnx: not written, parity fails by the fault of the runtime's optim"):
        export(tiny(), torch.zeros(IMAGE), tmp_path / "net.onnx")
    assert leftovers(tmp_path) == []


def test_law_8_a_failing_parity_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_module, "check_parity", _failed)
    (tmp_path / "net.onnx").write_bytes(b"old")
    with pytest.raises(ParityError, match="not written"):
        export(tiny(), torch.zeros(IMAGE), tmp_path / "net.onnx", overwrite=True)
    assert (tmp_path / "net.onnx").read_bytes() == b"old"
    assert leftovers(tmp_path) == ["net.onnx"]


def test_law_8_with_a_model_that_is_not_a_function(tmp_path: Path) -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn_like(x)

    with pytest.raises(ParityError, match="is the model deterministic in eval mode"):
        export(Noisy(), torch.zeros(IMAGE), tmp_path / "net.onnx")
    assert leftovers(tmp_path) == []


def test_law_8_a_wrong_rewrite_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_a_weight(graph: onnx.GraphProto) -> None:
        stem = next(tensor for tensor in graph.initializer if tensor.name == "stem.weight")
        values = onnx.numpy_helper.to_array(stem).copy()
        values[0] *= 1.01
        stem.CopyFrom(onnx.numpy_helper.from_array(values, stem.name))

    monkeypatch.setattr(export_module.graph, "tidy", break_a_weight)
    with pytest.raises(ParityError, match="fault of the export"):
        export(net(), torch.randn(IMAGE), tmp_path / "net.onnx")
    assert leftovers(tmp_path) == []


def test_an_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> Parity:
        assert len(leftovers(tmp_path)) == 1  # the draft is there at this moment
        raise KeyboardInterrupt

    monkeypatch.setattr(export_module, "check_parity", interrupt)
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        export(tiny(), torch.zeros(IMAGE), tmp_path / "net.onnx")
    assert leftovers(tmp_path) == []


# Places that cannot be written to: refused before any work


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(*_: object, **__: object) -> None:
        raise AssertionError("work was done")

    monkeypatch.setattr(export_module, "run_exporter", work)


@pytest.mark.usefixtures("no_work")
def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"old")
    with pytest.raises(WriteError, match=r"net.onnx: exists already; pass overwrite=True"):
        export(net(), torch.zeros(IMAGE), tmp_path / "net.onnx")
    assert (tmp_path / "net.onnx").read_bytes() == b"old"


@pytest.mark.usefixtures("no_work")
def test_a_missing_folder_a_file_as_folder_and_a_folder_as_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(WriteError, match="nowhere: no such folder"):
        export(net(), torch.zeros(IMAGE), tmp_path / "nowhere" / "net.onnx")
    with pytest.raises(WriteError, match="file: no such folder"):
        export(net(), torch.zeros(IMAGE), tmp_path / "file" / "net.onnx")
    with pytest.raises(WriteError, match="is a folder; name a file"):
        export(net(), torch.zeros(IMAGE), tmp_path)


@pytest.mark.usefixtures("no_work")
def test_a_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # the superuser may write anywhere, so chmod proves nothing
    with pytest.raises(WriteError, match=r"net.onnx: cannot be written"):
        export(net(), torch.zeros(IMAGE), tmp_path / "net.onnx")


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_one_clear_error(dtype: torch.dtype, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=rf"stem.weight: {dtype} cannot be checked .*; pass model.float\(\)$"):
        export(net().to(dtype), torch.zeros(IMAGE, dtype=dtype), tmp_path / "net.onnx")


@pytest.mark.usefixtures("no_work")
def test_a_model_of_more_than_two_gigabytes(tmp_path: Path) -> None:
    huge = nn.Module()
    huge.register_buffer("table", torch.zeros(1).expand(600_000_000))
    with pytest.raises(ExportError, match=r"2\.40 GB of weights; one ONNX file holds 2 GB"):
        export(huge, torch.zeros(IMAGE), tmp_path / "net.onnx")


@pytest.mark.usefixtures("no_work")
def test_a_strange_request(tmp_path: Path) -> None:
    for opset in (17, 99):
        with pytest.raises(ExportError, match=rf"opset {opset}: the exporter writes 18 to"):
            export(net(), torch.zeros(IMAGE), tmp_path / "net.onnx", opset=opset)
    with pytest.raises(ExportError, match="dynamic='all': pass None, 'batch' or 'size'"):
        export(net(), torch.zeros(IMAGE), tmp_path / "net.onnx", dynamic="all")  # type: ignore[arg-type]
    with pytest.raises(CaptureError, match="example: a int without any tensor"):
        export(net(), 3, tmp_path / "net.onnx")
    with pytest.raises(CaptureError, match="example: a tuple without any tensor"):
        export(net(), (1, 2), tmp_path / "net.onnx")


def test_an_opset_that_was_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_module.proto, "opset_of", lambda _: 18)
    with pytest.raises(ExportError, match="opset 20: torch wrote opset 18 instead"):
        export(tiny(), torch.zeros(IMAGE), tmp_path / "net.onnx", opset=20)


def test_another_opset_is_really_written(tmp_path: Path) -> None:
    done = export(tiny(), torch.zeros(IMAGE), tmp_path / "net.onnx", opset=20)
    assert (done.opset, done.ir_version) == (20, 9)


def test_overwrite_replaces(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"old")
    export(tiny(), torch.zeros(IMAGE), tmp_path / "net.onnx", overwrite=True)
    assert leftovers(tmp_path) == ["net.onnx"]
    assert (tmp_path / "net.onnx").stat().st_size > 3


# Inputs and outputs of every shape


class Many(nn.Module):
    def forward(self, x: Tensor, scale: Tensor, index: Tensor | None = None, *, mask: Tensor) -> dict[str, Any]:
        picked = x if index is None else x[:, index]
        return {"first": picked.mean([2, 3]) * scale, "rest": (picked * mask, None)}


def test_keywords_integers_and_nested_outputs(tmp_path: Path) -> None:
    example = {
        "mask": torch.rand(IMAGE[2:]),
        "scale": torch.ones(1),
        "index": torch.tensor([2, 0]),
        "x": torch.randn(IMAGE),
    }
    done = export(Many(), example, tmp_path / "many.onnx")
    assert [name for name, _ in done.inputs] == ["x", "scale", "index", "mask"]
    assert [shape for _, shape in done.outputs] == [(1, 2), (1, 2, 12, 12)]
    kinds = [node.op_type for node in onnx.load(done.path).graph.node]
    assert "GlobalAveragePool" in kinds
    assert "Reshape" in kinds  # a mean without keepdims


def test_names_on_demand(tmp_path: Path) -> None:
    done = export(net(), torch.zeros(IMAGE), tmp_path / "a.onnx", input_names=["image"], output_names=["stem"])
    assert (done.inputs[0][0], done.outputs[0][0]) == ("image", "stem")  # a name that a value inside had
    with pytest.raises(ExportError, match=r"input_names: \['a', 'b'\] for 1 tensors"):
        export(tiny(), torch.zeros(IMAGE), tmp_path / "b.onnx", input_names=["a", "b"])


def test_a_tuple_of_arguments(tmp_path: Path) -> None:
    class Sum(nn.Module):
        def forward(self, pair: tuple[Tensor, Tensor], third: Tensor) -> Tensor:
            return pair[0] + 2 * pair[1] + 3 * third

    example = ((torch.randn(2, 3), torch.randn(2, 3)), torch.randn(2, 3))
    assert export(Sum(), example, tmp_path / "sum.onnx").parity.passed


@pytest.mark.parametrize(("dynamic", "shape"), [("batch", ("batch", 3, 12, 12)), ("size", (1, 3, "height", "width"))])
def test_open_dimensions(dynamic: Any, shape: tuple[int | str, ...], tmp_path: Path) -> None:
    done = export(net(), torch.randn(IMAGE), tmp_path / "net.onnx", dynamic=dynamic)
    assert done.inputs[0][1] == shape
    tried = {case.inputs for case in done.parity.cases}
    assert tried >= ({"seed 0, batch 1", "seed 0, batch 3"} if dynamic == "batch" else {"seed 0, larger"})
    session = ort.InferenceSession(done.path, providers=["CPUExecutionProvider"])
    image = np.zeros((5, 3, 12, 12) if dynamic == "batch" else (1, 3, 20, 16), np.float32)
    assert session.run(None, {"x": image})[0].shape == (image.shape[0], 10)


def test_channels_last_and_frozen(tmp_path: Path) -> None:
    subject = net().to(memory_format=torch.channels_last).requires_grad_(False)  # type: ignore[call-overload]
    image = torch.randn(IMAGE).to(memory_format=torch.channels_last)
    assert export(subject, image, tmp_path / "net.onnx").parity.passed
    assert subject.stem.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_shared_conv_keeps_one_weight(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
            nn.init.constant_(self.first.weight, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.conv(self.first(self.conv(x))))

    done = export(Twice(), torch.randn(IMAGE), tmp_path / "twice.onnx")
    graph = onnx.load(done.path).graph
    assert [node.name for node in graph.node if node.op_type == "Conv"] == ["conv", "conv_1"]
    assert len({node.input[1] for node in graph.node if node.op_type == "Conv"}) == 1


def test_the_name_of_a_module_that_looks_like_an_operator(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add, self.x = nn.ReLU(), nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.add(self.x(x)) + 1

    graph = onnx.load(export(Odd(), torch.randn(IMAGE), tmp_path / "odd.onnx").path).graph
    names = [node.name for node in graph.node]
    assert names == ["x", "add", "add_1"]
    assert len({*names}) == len(names)


def test_what_picks_among_values_and_does_not_hold_says_what_to_export(tmp_path: Path) -> None:
    class Two(nn.Module):
        """Its two outputs leave the branch that the example took."""

        def __init__(self) -> None:
            super().__init__()
            self.backbone = net()

        def forward(self, x: Tensor) -> Tensor:
            values = self.backbone(x).topk(2).values
            return values * 2 if x.abs().sum() > 0 else values + 3

    message = r"in eval mode\? And it picks among values \(TopK\), where rounding counts: export model.backbone, do the"
    with pytest.warns(UserWarning, match="was traced instead"), pytest.raises(ParityError, match=message):
        export(Two().eval(), torch.zeros(IMAGE), tmp_path / "net.onnx")
    assert leftovers(tmp_path) == []
