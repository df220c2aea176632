"""Files as people have them: how they are read, refused, fitted, bundled and taken up again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

import convsurgeon as cs
from convsurgeon.graph.model_files import open_model
from convsurgeon.graph.subgraphs import operators_without_gradient
from convsurgeon.onnxnet.modules import Subgraph
from convsurgeon.onnxnet.network import OnnxNetwork
from convsurgeon.runtime.table import LatencyTable
from tests.growing import convert_growing
from tests.onnxnet.files import FILES, Graph, feed_of, normed, padded, plain, quantised, recurrent, run, saved


@pytest.mark.parametrize("name", FILES)
def test_torch_computes_what_the_runtime_computes(name: str, tmp_path: Path) -> None:
    path = saved(FILES[name](), tmp_path)
    network, _ = open_model(path)
    assert isinstance(network, OnnxNetwork)
    feed = feed_of(path, seed=1)
    with torch.no_grad():
        found = network(**{name: torch.from_numpy(array.astype(np.float32)) for name, array in feed.items()})
    for one, wanted in zip(found if isinstance(found, tuple) else (found,), run(path, feed), strict=True):
        limit = 3e-2 if wanted.dtype == np.float16 else 1e-5
        assert np.abs(one.numpy() - wanted.astype(float)).max() <= limit * np.abs(wanted).max()


def test_names_hide_nothing_of_the_network(tmp_path: Path) -> None:
    names = vars(open_model(saved(plain(), tmp_path))[0])
    graph, value = Graph(), "x"
    for name in names:
        value = graph.conv(value, f"{name}.out", name, 4, 4, 1)
    network, example = open_model(saved(graph.model(value), tmp_path, "names.onnx"))
    assert len(network.file_convs) == len(names)  # type: ignore[arg-type]
    assert np.isfinite(network(*example.args).numpy(force=True)).all()  # type: ignore[attr-defined]


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    data = saved(plain(), tmp_path).read_bytes()
    (tmp_path / "bad.onnx").write_bytes(data.replace(b"body.conv", b"body\xffconv"))
    with pytest.raises(cs.errors.LoadError, match=r"is damaged: b'body\\xffconv.* stands where a name should be"):
        cs.plan(tmp_path / "bad.onnx")


@pytest.mark.parametrize("computes", [True, False])
def test_parity_is_looser_only_where_a_file_computes_in_half_precision(computes: bool, tmp_path: Path) -> None:
    graph = Graph(13)
    graph.const("w", (graph.random.standard_normal((4, 4, 3, 3)) / 6).astype(np.float16))
    graph.node("Cast", ["w"], "w32", to=TensorProto.FLOAT)
    graph.node("Conv", ["x", "w32"], "a", "conv")
    graph.node("Cast", ["a"], "b", to=TensorProto.FLOAT16 if computes else TensorProto.DOUBLE)
    graph.node("Cast", ["b"], "y", to=TensorProto.FLOAT)
    result = cs.convert(saved(graph.model(), tmp_path), forms=[cs.CP(rank=2)], calibration=False, progress=False)
    made = cs.onnx.export(result.model, None, tmp_path / "made.onnx")
    assert made.parity.relative_limit == (3e-2 if computes else 1e-4)


def test_everything_but_the_lstm_is_translated(tmp_path: Path) -> None:
    network, example = open_model(saved(recurrent(), tmp_path))
    pieces = [module for module in network.modules() if isinstance(module, Subgraph)]
    assert [piece.operators for piece in pieces] == [("Resize",), ("LSTM", "TopK")]
    assert operators_without_gradient(network, example) == ("Resize", "LSTM", "TopK")  # type: ignore[arg-type]
    whole, example = open_model(saved(normed(), tmp_path))
    assert not any(isinstance(module, Subgraph) for module in whole.modules())
    kinds = {type(module).__name__ for module in whole.modules()}
    assert {"SiLU", "Hardswish", "PReLU", "BatchNorm2d", "Conv2d"} <= kinds


@pytest.mark.parametrize("kind", ["QDQ", "ConvInteger", "QLinearConv"])
def test_files_of_whole_numbers_are_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(cs.errors.LoadError, match="conv is a quantised conv"):
        cs.convert(saved(quantised(kind), tmp_path))


def test_files_that_a_runtime_has_optimised_are_refused(tmp_path: Path) -> None:
    model = plain()
    node = next(node for node in model.graph.node if node.op_type == "Conv")
    node.op_type, node.domain = "FusedConv", "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, tmp_path / "net.onnx")
    with pytest.raises(cs.errors.LoadError, match=r"com.microsoft.FusedConv: onnxruntime has optimised this file"):
        cs.inspect(tmp_path / "net.onnx")


def test_a_node_without_an_input_that_it_needs_is_refused(tmp_path: Path) -> None:
    """The runtime would end the process."""
    graph = Graph(13)
    graph.conv("x", "a", "conv", 4, 4)
    graph.node("Sum", ["a", ""], "y", "total")
    with pytest.raises(cs.errors.LoadError, match="Sum total lacks an input that it must have"):
        cs.plan(saved(graph.model(), tmp_path))


def test_files_older_than_the_runtime_are_refused(tmp_path: Path) -> None:
    graph = Graph(6)
    graph.conv("x", "y", "conv", 4, 4)
    with pytest.raises(cs.errors.LoadError, match="is of opset 6, onnxruntime knows 7 and newer; bring it there"):
        cs.plan(saved(graph.model(), tmp_path))


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.onnx")
    with pytest.raises(cs.errors.LoadError, match=r"x\.onnx: cannot be read \(is a folder, a device or a pipe\)"):
        cs.inspect(tmp_path / "x.onnx", None)


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    for data, words in ((b"", "has no nodes"), (b"no protobuf", "is not an ONNX file"), (b"\x08\x08", "has no nodes")):
        (tmp_path / "net.onnx").write_bytes(data)
        with pytest.raises(cs.errors.LoadError, match=words):
            cs.plan(tmp_path / "net.onnx")
    with pytest.raises(cs.errors.LoadError, match="cannot be read"):
        cs.plan(tmp_path / "nothing.onnx")
    with pytest.raises(cs.errors.CaptureError, match="onnxruntime does not run it on an input of shape 1x4x9x9"):
        cs.plan(saved(plain(dtype=np.float64), tmp_path))  # its convs are of float32 alone
    with pytest.raises(cs.errors.CaptureError, match="does not run it"):
        cs.plan(saved(padded("SAME_LOWER", 1, 2, 3), tmp_path))


def _open_sizes() -> onnx.ModelProto:
    graph = Graph(13)
    graph.conv("x", "a", "conv1", 4, 8, auto_pad="SAME_UPPER", strides=[2, 2])
    graph.conv("a", "b", "conv2", 8, 8, auto_pad="SAME_UPPER")
    graph.node("Mul", ["b", "scale"], "y", "scaled")
    return graph.model(inputs=[("x", ["n", 4, "height", "width"]), ("scale", [1])])


def test_open_sizes_want_an_example_and_stay_open(tmp_path: Path) -> None:
    path = saved(_open_sizes(), tmp_path)
    with pytest.raises(cs.errors.CaptureError, match=r"x is open \(nx4xheightxwidth: height, width\); pass an example"):
        cs.plan(path)
    x, scale = torch.randn(1, 4, 10, 12), torch.ones(1)
    example: Any
    for example in ((x, scale), {"scale": scale, "x": x}, [x.numpy(), scale.numpy()]):
        assert cs.capture(path, example).sites[0].calls[0].input_shape[-2:] in ((10, 12), (11, 13))
    with pytest.raises(cs.errors.CaptureError, match="has no input 'z'; its inputs are x, scale"):
        cs.plan(path, {"x": x, "z": scale})
    with pytest.raises(cs.errors.CaptureError, match="input x is nx4xheightxwidth, the example has 1x3x10x12"):
        cs.plan(path, (x[:, :3], scale))
    how: dict[str, Any] = {"forms": [cs.DepthwiseSeparable(rank=cs.Energy(1.0))], "policy": cs.select.everything()}
    result = convert_growing(path, (x, scale), calibration=False, **how)
    assert len(result.changes) == 2
    cs.onnx.export(result.model, (x, scale), tmp_path / "made.onnx")
    feed = {"x": np.random.default_rng(0).standard_normal((2, 4, 7, 9)).astype(np.float32), "scale": np.ones(1, "f")}
    np.testing.assert_allclose(run(path, feed)[0], run(tmp_path / "made.onnx", feed)[0], rtol=1e-4, atol=1e-5)


def test_images_of_a_fixed_batch_go_in_one_by_one(tmp_path: Path) -> None:
    graph = Graph(13)
    graph.conv("x", "a", "conv1", 4, 8, pads=[1] * 4)
    graph.conv("a", "b", "conv2", 8, 8, pads=[1] * 4)
    graph.node("Reshape", ["b", graph.const("shape", np.array([8, -1], dtype=np.int64))], "y", "flat")
    path = saved(graph.model(), tmp_path)
    network, _ = open_model(path)
    with pytest.raises(ValueError, match="the file takes 1 at a time, got 2"):
        network(torch.zeros(2, 4, 9, 9))
    result = cs.convert(path, forms=[cs.CP(rank=8)], calibration=torch.randn(70, 4, 9, 9), progress=False)
    assert result.report.reconstruction.error_after < result.report.reconstruction.error_before


@pytest.mark.parametrize("zero", [0, 1])
def test_a_batch_that_is_written_down_does_not_bind(zero: int, tmp_path: Path) -> None:
    graph = Graph(14)
    graph.conv("x", "a", "conv1", 4, 8, pads=[1] * 4)
    graph.node("GlobalAveragePool", ["a"], "b", "pool")
    graph.node("Reshape", ["b", graph.const("shape", np.array([1, 8]))], "y", "flat", allowzero=zero)
    network, _ = open_model(saved(graph.model(), tmp_path))
    x = torch.randn(3, 4, 9, 9)
    with torch.no_grad():
        torch.testing.assert_close(network(x), torch.cat([network(one) for one in x.split(1)]))


@pytest.mark.filterwarnings("ignore:calibration")
def test_sites_before_an_lstm_are_fitted_and_it_is_said_how(tmp_path: Path) -> None:
    path = saved(recurrent(), tmp_path)
    images = torch.randn(40, 4, 9, 9)
    result = cs.convert(path, forms=[cs.DepthwiseSeparable(rank=1)], calibration=images, progress=False)
    assert list(result.changes) == ["body"]
    fit = result.report.reconstruction
    assert fit.error_after < fit.error_before
    assert "LSTM, TopK of the file run in onnxruntime, which gives no gradients; errors before" in str(result.report)
    with pytest.raises(cs.errors.RecoveryError, match="LSTM, TopK of the file run in onnxruntime"):
        cs.recover(result, images)


def test_recovery_trains_what_was_rewritten_and_nothing_else(tmp_path: Path) -> None:
    path = saved(normed(), tmp_path)
    images = torch.randn(80, 4, 9, 9)
    result = cs.convert(path, forms=[cs.DepthwiseSeparable(rank=1)], calibration=False, progress=False)
    better = cs.recover(result, images, recipe=cs.Recipe(epochs=8, lr=3e-3), progress=False)
    before, after = result.model.state_dict(), better.model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(name.startswith(tuple(f"{site}." for site in result.changes)) for name in moved)
    cs.onnx.export(better.model, None, tmp_path / "better.onnx")


def test_weights_outside_stay_outside(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = saved(plain(), tmp_path / "in", save_as_external_data=True, location="w.bin", size_threshold=0)
    result = cs.convert(path, forms=[cs.DepthwiseSeparable(rank=2)], calibration=False)
    for _ in range(2):
        bundle = cs.export(result, tmp_path / "out", pairs=0, calibration=False, overwrite=True)
    assert (bundle.folder / "original.onnx").read_bytes() == path.read_bytes()
    assert (bundle.folder / "w.bin").read_bytes() == (tmp_path / "in" / "w.bin").read_bytes()
    made = onnx.load(bundle.folder / "model.onnx", load_external_data=False)
    places = {item.value for one in made.graph.initializer for item in one.external_data if item.key == "location"}
    assert places == {"model.onnx.data"}
    assert bundle.converted.size_bytes > (bundle.folder / "model.onnx.data").stat().st_size
    feed = feed_of(path)
    assert np.isfinite(run(bundle.folder / "model.onnx", feed)[0]).all()
    (tmp_path / "again.onnx.data").write_bytes(b"mine")
    with pytest.raises(cs.errors.WriteError, match="exists already"):
        cs.onnx.export(result.model, None, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx.data").read_bytes() == b"mine"
    assert not (tmp_path / "again.onnx").exists()


def test_half_precision_is_fitted_in_float32_and_stored_as_it_was(tmp_path: Path) -> None:
    path = saved(plain(dtype=np.float16), tmp_path)
    images = torch.randn(70, 4, 9, 9)
    result = cs.convert(path, forms=[cs.DepthwiseSeparable(rank=2)], calibration=images, progress=False)
    assert result.report.reconstruction.error_after < result.report.reconstruction.error_before
    cs.onnx.export(result.model, None, tmp_path / "made.onnx")
    made = onnx.load(tmp_path / "made.onnx")
    assert {tensor.data_type for tensor in made.graph.initializer} == {TensorProto.FLOAT16}


def test_images_are_made_up_where_none_are_given(tmp_path: Path) -> None:
    graph = Graph(13)
    graph.conv("x", "a", "stem", 3, 8, pads=[1] * 4)
    graph.node("Relu", ["a"], "b", "relu")
    graph.conv("b", "y", "body", 8, 8, pads=[1] * 4)
    path = saved(graph.model(inputs=[("x", [1, 3, 16, 16])]), tmp_path)
    result = cs.convert(path, forms=[cs.DepthwiseSeparable(rank=2)], calibration=cs.Images(limit=32), progress=False)
    assert "No images were given, so 32 synthetic" in str(result.report)


def test_what_touches_more_than_convs_is_refused(tmp_path: Path) -> None:
    path = saved(plain(), tmp_path)
    for how in ({"opset": 20}, {"dynamic": "batch"}, {"input_names": ["z"]}):
        with pytest.raises(cs.errors.ExportError, match="an ONNX file keeps its opset, its sizes and its names"):
            cs.onnx.export(path, None, tmp_path / "made.onnx", **how)  # type: ignore[arg-type]
    assert not (tmp_path / "made.onnx").exists()


@pytest.mark.parametrize("word", ["SAME_UPPER", "SAME_LOWER"])
def test_a_table_of_latencies_knows_margins(word: str, tmp_path: Path) -> None:
    path = saved(padded(word, 2), tmp_path)
    forms = [cs.CP(rank=4), cs.DepthwiseSeparable(rank=2)]
    table = cs.Runtime().measure(cs.capture(path), forms, cs.select.everything(), passes=1, progress=False)
    assert isinstance(table, LatencyTable)
    assert {row.site for row in table.rows} == {"conv", "second"}
    assert all(table.has("second", form) for form in forms)
    assert table.total_ms > 0


@pytest.mark.parametrize("word", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("biased", [False, True], ids=["taken by a stage", "a Pad of its own"])
@pytest.mark.parametrize("k", [2, 3])
def test_a_margin_goes_with_the_size(word: str, biased: bool, k: int, tmp_path: Path) -> None:
    """In a file of open sizes, and where one conv is called on two sizes."""
    graph = Graph(13)
    weight = graph.weight("conv.weight", 4, 4, k, k)
    for source, target in (("x", "a"), ("a", "y")):
        graph.node("Conv", [source, weight], target, f"{target}.conv", auto_pad=word, strides=[2, 2])
    path = saved(graph.model(inputs=[("x", [1, 4, "height", "width"])]), tmp_path)
    example = torch.randn(1, 4, 10, 8)
    network, _ = open_model(path, example)
    assert isinstance(network, OnnxNetwork)
    network.conv = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 1, bias=biased), torch.nn.Conv2d(4, 4, k, 2))
    cs.onnx.export(network, example, tmp_path / "made.onnx")
    operators = {node.op_type for node in onnx.load(tmp_path / "made.onnx").graph.node}
    assert ("Pad" in operators) == biased
    for size in ((10, 8), (7, 9), (5, 6), (13, 4)):
        x = torch.randn(1, 4, *size)
        (found,) = run(tmp_path / "made.onnx", {"x": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), network(x).detach(), rtol=1e-5, atol=1e-5)


def test_what_ships_as_int8_runs_and_its_parity_is_said(tmp_path: Path) -> None:
    path = saved(plain(), tmp_path)
    images = torch.randn(80, 4, 9, 9)
    result = cs.convert(path, forms=[cs.CP(rank=6)], calibration=images, progress=False)
    bundle = cs.export(result, tmp_path / "out", int8=True, calibration=images, pairs=0, progress=False)
    for name in ("original-int8.onnx", "model-int8.onnx"):
        made = bundle.folder / name
        assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in onnx.load(made).graph.node}
        feed = {"x": images[:1].numpy()}
        (wanted,), (found,) = run(bundle.folder / name.replace("-int8", ""), feed), run(made, feed)
        assert 0 < np.abs(found - wanted).max() < 0.2 * np.abs(wanted).max()
    said = {one.name: one.sqnr_db for one in bundle.agreement}
    assert min(said["original-int8.onnx"], said["model-int8.onnx"]) > 10
    assert "model-int8.onnx" in str(bundle)
