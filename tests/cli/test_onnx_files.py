"""ONNX files on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from convsurgeon.cli import main
from tests.onnxnet.files import Graph, plain, saved


def test_convert_writes_a_bundle_from_which_the_file_can_be_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(plain(), tmp_path)
    np.save(tmp_path / "images.npy", np.random.default_rng(0).random((70, 4, 9, 9)).astype(np.float32))
    line = ["convert", str(path), "--calibrate", str(tmp_path / "images.npy"), "--form", "cp", "--rank", "4"]
    assert main([*line, "--out", str(tmp_path / "out"), "--pairs", "0"]) == 0
    said = capsys.readouterr().out
    assert "2 of 3 convs rewritten" in said
    assert (tmp_path / "out" / "original.onnx").read_bytes() == path.read_bytes()
    text = (tmp_path / "out" / "README.md").read_text()
    assert 'cs.rebuild("original.onnx"' in text
    assert "build_model" not in text
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["deployment"]["converted"]["parity"]["cases"][0]["passed"]
    taken = ["--from", str(tmp_path / "out"), "--data", str(tmp_path / "images.npy"), "--epochs", "1", "--lr", "1e-3"]
    assert main(["recover", str(path), *taken]) == 0
    capsys.readouterr()
    assert main(["recover", str(tmp_path / "out" / "model.onnx"), *taken]) == 1
    assert "made from another file" in capsys.readouterr().err
    assert main(["plan", str(path), "--rank", "1", "--out", str(tmp_path / "plan.json")]) == 0
    assert main(["convert", str(path), "--plan", str(tmp_path / "plan.json"), "--calibrate", "none"]) == 0


@pytest.mark.filterwarnings("default:The calibration images are used as they are")
def test_inputs_by_name_and_what_is_wrong_with_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = Graph(13)
    graph.conv("x", "a", "conv1", 4, 8, pads=[1] * 4)
    graph.node("Mul", ["a", "scale"], "y", "scaled")
    path = saved(graph.model(inputs=[("x", ["n", 4, "height", "width"]), ("scale", [1])]), tmp_path)
    for more, words in (
        ([], "the size of x is open (nx4xheightxwidth: height, width); pass an example (--input x=1x4x224x224)"),
        (["--input", "z=1x4x8x8"], "has no input 'z'; its inputs are x, scale"),
        (["--input", "1x4x8x8", "1", "2"], "has 2 inputs, not 3; its inputs are x, scale"),
        (["--weights", str(path)], "an ONNX file has its weights in it"),
    ):
        assert main(["inspect", str(path), *more]) == 1
        assert words in capsys.readouterr().err
    assert main(["inspect", str(path), "--input", "x=1x4x8x8"]) == 0
    assert "4->8 3x3" in capsys.readouterr().out
    assert main(["inspect", "tests/nets.py:Plain"]) == 1
    assert "--input: a model of Python needs the shape of its inputs" in capsys.readouterr().err
    np.savez(tmp_path / "in.npz", scale=np.ones((1, 1), "f")[:, 0], x=np.ones((1, 4, 8, 8), "f"))
    line = [
        "convert",
        str(path),
        "--input",
        "x=1x4x8x8",
        "--calibrate",
        str(tmp_path / "in.npz"),
        "--form",
        "separable",
    ]
    assert main([*line, "--select", "everything()", "--trusted"]) == 0


def test_images_with_their_channels_last(tmp_path: Path) -> None:
    graph = Graph(13)
    graph.node("Transpose", ["x"], "t", "turn", perm=[0, 3, 1, 2])
    graph.conv("t", "a", "conv1", 3, 8, pads=[1] * 4)
    graph.conv("a", "y", "conv2", 8, 8, pads=[1] * 4)
    path = saved(graph.model(inputs=[("x", [1, 12, 10, 3])]), tmp_path)
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 255, (64, 20, 20, 3), dtype=np.uint8))
    line = ["convert", str(path), "--calibrate", str(tmp_path / "images.npy")]
    assert main([*line, "--form", "separable", "--mean", "0.5", "--out", str(tmp_path / "out"), "--pairs", "0"]) == 0
    assert [one.name for one in onnx.load(tmp_path / "out" / "model.onnx").graph.input] == ["x"]
