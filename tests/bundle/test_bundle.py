"""The bundle: what is in it, that it says the truth, and that it is whole or not there."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

import convsurgeon as cs
from convsurgeon import cli
from convsurgeon.base.errors import CalibrationError, ExportError, LatencyError, ParityError, WriteError
from convsurgeon.bundle import int8_files, networks
from convsurgeon.bundle.export import CONTENTS
from convsurgeon.int8.compare import LayerError
from convsurgeon.int8.quantize import Quantized
from convsurgeon.onnx import exporter
from convsurgeon.onnx.metadata import Preparation, layout, state_sha256
from convsurgeon.report.bundle import Bundle
from convsurgeon.report.cautions import cautions
from convsurgeon.runtime.runtime import Runtime
from tests.bundle.bundles import converted, export, images
from tests.onnx.small import net

ROOT = Path(__file__).resolve().parents[2]
MODELS = [f"{name}{kind}.onnx" for kind in ("", "-int8") for name in ("model", "original")]
PAPERS = ["README.md", "SHA256SUMS", "example_inputs.npz", "example_outputs.npz", "plan.json"]
PAPERS += ["report.html", "report.json", "report.md", "weights.safetensors"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """With everything there is."""
    out = tmp_path_factory.mktemp("bundle") / "out"
    settings: dict[str, Any] = {"pairs": 50, "runtime": Runtime(threads=1), "progress": False}
    return cs.export(converted(), out, int8=True, calibration=images(), **settings)


def read(bundle: Bundle, name: str) -> Any:
    return json.loads((bundle.folder / name).read_text())


def test_everything_is_there_and_nothing_else(whole: Bundle) -> None:
    assert sorted(path.name for path in whole.folder.iterdir()) == sorted([*MODELS, *PAPERS])
    assert {
        *MODELS,
        *PAPERS,
        int8_files.MIXED,
        "model.onnx.data",
    } == CONTENTS  # the last of files with their weights outside
    assert [path.name for path in whole.folder.parent.iterdir()] == ["out"]
    assert (whole.original.path, whole.converted.path) == (whole.folder / "original.onnx", whole.folder / "model.onnx")
    assert all(one.path.is_file() for one in whole.quantized)


def test_checksums(whole: Bundle) -> None:
    lines = dict(reversed(line.split("  ")) for line in (whole.folder / "SHA256SUMS").read_text().splitlines())
    assert set(lines) == set(MODELS) | set(PAPERS) - {"SHA256SUMS"}
    for name, digest in lines.items():
        assert hashlib.sha256((whole.folder / name).read_bytes()).hexdigest() == digest
    assert {name: lines[name] for name in MODELS} == whole.sha256


def test_the_snippet_in_the_readme_runs(whole: Bundle) -> None:
    """All of them: onnxruntime on the golden pair, the file to ship, and back in torch."""
    text = (whole.folder / "README.md").read_text()
    assert whole.recommended is not None
    first, *which, second = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", first], cwd=whole.folder, capture_output=True, text=True, check=True
    )
    assert re.fullmatch(r"output \(1, 10\): largest difference \S+e-0\d, largest value \S+\n", done.stdout)
    names: dict[str, Any] = {"build_model": net}
    before = Path.cwd()
    os.chdir(whole.folder)
    try:
        exec((which or [first])[0], names)
        exec(second, names)
    finally:
        os.chdir(before)
    shipped = whole.recommended
    assert shipped is not None
    assert names["session"]._model_path == shipped.name
    options = names["session"].get_session_options()
    assert options.intra_op_num_threads == shipped.threads == 1
    with np.load(whole.folder / "example_inputs.npz") as given, np.load(whole.folder / "example_outputs.npz") as wanted:
        found = names["model"].eval()(torch.from_numpy(given["x"]))
        assert np.abs(found.detach().numpy() - wanted["output"]).max() < 1e-5
        assert np.array_equal(given["x"][0], images()[32].numpy())  # a real image, one that nothing was fitted to
    assert "Input `x`: 1 x 3 x 12 x 12 (NCHW)" in text


def test_a_wrong_file_does_not_pass_the_snippet(whole: Bundle, tmp_path: Path) -> None:
    text = (whole.folder / "README.md").read_text()
    snippet = text.split("```python\n")[1].split("```")[0]
    for name in ("example_inputs.npz", "example_outputs.npz"):
        (tmp_path / name).write_bytes((whole.folder / name).read_bytes())
    (tmp_path / "model.onnx").write_bytes((whole.folder / "original.onnx").read_bytes())
    done = subprocess.run([sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "AssertionError" in done.stderr


@pytest.mark.parametrize("name", MODELS)
def test_every_file_says_what_it_is(whole: Bundle, name: str) -> None:
    path = whole.folder / name
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, strict_mode=True, check_type=True, data_prop=True)
    facts = {item.key: item.value for item in model.metadata_props}
    assert facts["tool"].startswith("convsurgeon ")
    assert facts["torch"] == torch.__version__
    assert facts["source_sha256"] == state_sha256(net())
    assert json.loads(facts["inputs"]) == [{"name": "x", "shape": [1, 3, 12, 12], "layout": "NCHW"}]
    forms = {"layer1.0.conv2": {"form": "depthwise_separable", "rank": 1}} if name.startswith("model") else {}
    assert json.loads(facts["plan"]).keys() == forms.keys()
    data = path.read_bytes()
    for place in [Path.cwd(), Path.home(), Path(torch.__file__).parent, ROOT, whole.folder.parent, Path(sys.prefix)]:
        assert str(place).encode() not in data
    assert ort.InferenceSession(path, providers=["CPUExecutionProvider"]).get_inputs()[0].name == "x"


def test_the_source_hash_is_that_of_the_weights() -> None:
    other = net()
    assert state_sha256(other) == state_sha256(net())
    with torch.no_grad():
        other.stem.bias[0] += 1e-6
    assert state_sha256(other) != state_sha256(net())
    assert [layout(shape) for shape in ((1, 3, 8, 8), (1, 3), (2,), (1, 2, 3))] == ["NCHW", "NC", "N", ""]


def test_the_report_says_the_same_in_all_formats(whole: Bundle) -> None:
    values = read(whole, "report.json")
    deployed = values["deployment"]
    files = [deployed["original"], deployed["converted"], *deployed["quantized"]]
    assert [file["path"] for file in files] == list(whole.sizes)
    assert deployed["sha256"]["original.onnx"] == whole.sha256["original.onnx"]
    assert deployed["agreement_on"] == "8 held-out images"
    assert values["sentence"] == whole.sentence
    assert str(whole.folder.parent) not in (whole.folder / "report.json").read_text()
    rows = deployed["bench"]["timings"][0]["rows"]
    assert [row["path"] for row in rows] == [row["name"] for row in rows] == list(whole.sizes)
    markdown, page = ((whole.folder / name).read_text() for name in ("report.md", "report.html"))
    for name in ("original-int8.onnx", "NNAPI", "layer1.0.conv2"):
        assert name in markdown
        assert name in page
    assert whole.sentence in markdown
    assert "original-int8.onnx" in str(whole)  # quantised dense, beside the converted file


def test_real_images_are_among_the_parity_cases(whole: Bundle) -> None:
    tried = {case.inputs for case in whole.converted.parity.cases}
    assert {"example", "seed 2", "image 0", "image 3"} <= tried
    assert whole.converted.parity.passed


def test_int8_ranges_come_from_other_images_than_the_verdict(whole: Bundle) -> None:
    by_name = {one.name: one for one in whole.agreement}
    assert by_name["model.onnx"].rows == 8
    assert by_name["original-int8.onnx"].sqnr_db > 10


def test_the_same_bundle_in_another_process(whole: Bundle, tmp_path: Path) -> None:
    """Identical bytes of the models under another hash seed."""
    code = (
        "import sys; from tests.bundle.bundles import converted, export, images; "
        "export(converted(), sys.argv[1], int8=True, calibration=images())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONIOENCODING": "utf-8", "PYTHONUTF8": "1"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], cwd=ROOT, env=environment, check=True)
    for name in ("model.onnx", "original.onnx", "model-int8.onnx", "example_inputs.npz", "weights.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (whole.folder / name).read_bytes(), name


def test_open_dimensions(tmp_path: Path) -> None:
    made = export(converted(), tmp_path / "out", dynamic="batch", calibration=images(), int8=True)
    assert made.converted.inputs == (("x", ("batch", 3, 12, 12)),)
    assert made.mobile["model.onnx"].dynamic == ("x",)
    assert read(made, "report.json")["deployment"]["original"]["inputs"] == [["x", ["batch", 3, 12, 12]]]
    assert (tmp_path / "out" / "model-int8.onnx").is_file()


class TwoInputs(nn.Module):
    """Keywords in another order than the forward's, and outputs in a dict; one name that numpy.savez cannot take."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, file: Tensor, scale: Tensor) -> dict[str, Tensor]:
        out = self.conv(file * scale)
        return {"map": out, "mean": out.mean()}


def test_several_inputs_and_outputs(tmp_path: Path) -> None:
    example = {"scale": torch.ones(1), "file": torch.randn(1, 3, 6, 6)}
    result = cs.convert(
        TwoInputs(), example, policy=cs.select.everything(), forms=[cs.DepthwiseSeparable(rank=2)], calibration=False
    )
    made = export(result, tmp_path / "out")
    with np.load(tmp_path / "out" / "example_inputs.npz") as given:
        assert {name: array.shape for name, array in given.items()} == {"file": (1, 3, 6, 6), "scale": (1,)}
    with np.load(tmp_path / "out" / "example_outputs.npz") as wanted:
        assert [array.shape for array in wanted.values()] == [(1, 8, 4, 4), ()]
    assert made.agreement[0].top1 is None
    assert "on 8 random inputs" in made.sentence


def test_nothing_to_rewrite_is_a_bundle_too(tmp_path: Path) -> None:
    result = cs.convert(tiny().original, images(1), policy=~cs.select.everything(), calibration=False)
    made = export(result, tmp_path / "out")
    assert made.sentence == "None of 1 convs was rewritten: the network is as it was."
    assert made.agreement[0].sqnr_db == float("inf")


def test_what_was_not_rewritten_is_one_file_and_not_faster_than_itself(tmp_path: Path) -> None:
    result = cs.convert(tiny().original, images(1), policy=~cs.select.everything(), calibration=False)
    settings: dict[str, Any] = {"pairs": 50, "runtime": Runtime(threads=1), "progress": False}
    made = cs.export(result, tmp_path / "out", int8=True, calibration=images(), **settings)
    assert [one.path.name for one in made.quantized] == ["original-int8.onnx"]
    assert not (made.folder / "model-int8.onnx").exists()
    assert made.bench is not None
    assert [row.name for row in made.bench.main.rows] == ["original.onnx", "original-int8.onnx"]
    assert "as the quantised original" not in made.sentence
    assert "original-int8.onnx" in (made.folder / "report.html").read_text()
    assert export(result, tmp_path / "one", pairs=50).bench is None  # nothing to compare


def test_an_int8_file_that_fails_is_left_out_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(source: Path, place: Path, *rest: Any, **more: Any) -> Any:
        if source.name == "model.onnx":
            raise ParityError(f"{place}: not written, too far off")
        return honest(source, place, *rest, **more)

    honest = int8_files.quantize
    monkeypatch.setattr(int8_files, "quantize", fails)
    made = export(tiny(), tmp_path / "out", int8=True, calibration=images())
    assert [one.path.name for one in made.quantized] == ["original-int8.onnx"]
    assert made.notes == ("model-int8.onnx: not written, too far off.",)
    assert any(made.notes[0] in text for text in cautions(tiny().report, made))


@pytest.mark.parametrize(("share", "tries"), [(0.6, [1, 2]), (0.25, [3]), (0.05, []), (0.0, [])])
def test_few_mixed_files_are_tried_and_it_is_said(
    share: float, tries: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = (0.5, 0.2, 0.1, 0.1, 0.05, 0.05)
    layers = tuple(LayerError(f"layer{number}", 20.0, added, False) for number, added in enumerate(noise))
    rounded = Quantized(tmp_path / "model-int8.onnx", 1, "int8", 20.0, 1.0, layers)
    tried: list[int] = []
    monkeypatch.setattr(int8_files, "feeds_for", lambda *_: [])
    monkeypatch.setattr(int8_files, "quantize", lambda *_, exclude, **__: tried.append(len(exclude)))
    file: Any = dataclasses.replace(rounded, path=tmp_path / "model.onnx")
    made, note = int8_files.write_mixed(file, rounded, [], share, lambda _: False)
    assert made is None
    assert tried == tries
    assert all(str(count) in note for count in tries)
    assert "model-int8.onnx" in note


# What cannot be done leaves nothing, and says so before the work where it can


def failing(_: object, __: object, place: object = "model.onnx", **___: object) -> None:
    raise ParityError(f"{place}: not written")


def tiny() -> cs.Result:
    """Two layers: enough where only the folder matters."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(800, 10))
    return cs.convert(
        model.eval(), images(1), policy=cs.select.everything(), forms=[cs.DepthwiseSeparable(rank=1)], calibration=False
    )


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, result = tmp_path / "out", tiny()
    with pytest.raises(CalibrationError, match="int8"):
        export(result, out, int8=True, calibration=False)
    with pytest.raises(ExportError, match="std: every value must be above 0"):
        Preparation(std=(0.0,)).check([("x", (1, 3, 2, 2))])
    with pytest.raises(LatencyError, match="pairs"):
        export(result, out, pairs=1)
    monkeypatch.setattr(networks, "write_file", failing)
    with pytest.raises(ParityError, match=f"{out / 'original.onnx'}: not written"):  # the folder that was asked for
        export(result, out, int8=True, calibration=images())
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    export(result, out)
    with pytest.raises(WriteError, match="exists already"):
        export(result, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    monkeypatch.setattr(networks, "write_file", failing)
    with pytest.raises(ParityError, match="not written"):
        export(result, out, overwrite=True, int8=True, calibration=images())
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "images.npy", images(80).numpy())
    command = ["convert", f"{ROOT}/tests/onnx/small.py:Net", "--input", "1x3x12x12", "--rank", "2"]
    command += ["--out", str(tmp_path / "out"), "--pairs", "0", "--int8"]
    assert cli.main([*command, "--calibrate", "none"]) == 1
    assert "int8" in capsys.readouterr().err
    assert cli.main([*command, "--calibrate", str(tmp_path / "images.npy")]) == 0
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) <= 10
    assert str(tmp_path / "out" / "report.html") in printed
    assert "Files, compared" not in printed
    assert cli.main([*command, "--calibrate", str(tmp_path / "images.npy"), "--force", "--quiet"]) == 0
    assert capsys.readouterr().out.count("\n") == 1
    assert cli.main([*command, "--calibrate", str(tmp_path / "images.npy"), "--force", "--verbose"]) == 0
    printed = capsys.readouterr().out
    for words in ("Files, compared", "original-int8.onnx", "parity", "NNAPI", "convs rewritten:", "report.html"):
        assert words in printed
    assert sum(line.startswith("note: ") for line in printed.splitlines()) <= 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--pairs", "20"], "pairs=20: too few for an interval; pass 50 or more, or 0 for no timing"),
        (["--threads", "0"], "threads=0: this machine has"),
        (["--threads", "99999"], "threads=99999: this machine has"),
    ],
)
def test_what_cannot_work_is_refused_before_the_conversion(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("convsurgeon.cli.convert.convert", failing)
    command = ["convert", f"{ROOT}/tests/onnx/small.py:Net", "--input", "1x3x12x12", "--out", str(tmp_path / "out")]
    command += ["--calibrate", "none"]
    assert cli.main([*command, *words]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_real_inputs_in_batches_of_the_example() -> None:
    held = [cs.Example((images(8), torch.ones(1))), cs.Example((images(2), torch.ones(1)))]
    like = cs.Example((images(3), torch.ones(1)))
    found = int8_files.single_batches(held, like)
    assert [example.tensors()[0].shape[0] for example in found] == [3, 3]
    assert torch.equal(found[1].tensors()[0], images(8)[3:6])
    assert found[1].tensors()[1].shape == (1,)
    assert int8_files.single_batches(held, cs.Example((torch.ones(3, 3, 9, 9), torch.ones(1)))) == []


@pytest.mark.filterwarnings("ignore:The calibration images are used as they are")
def test_the_images_that_a_conversion_held_back_speak_for_it(tmp_path: Path) -> None:
    """Nobody has to hand them in again; noise says nothing of a network."""
    subject = net().eval()
    result = cs.convert(
        subject,
        images(1),
        forms=[cs.DepthwiseSeparable(rank=1)],
        calibration=cs.Images(images(80), trusted=True),
        progress=False,
    )
    bundle = export(result, tmp_path / "out")
    count = sum(int(one.tensors()[0].shape[0]) for one in result.held_back)
    assert f"{count} held-out images" in bundle.sentence
    assert "random inputs" not in bundle.sentence
    quantised = export(result, tmp_path / "int8", int8=True)  # most of them find its ranges, a fifth judges
    assert f"{round(count * 0.2)} held-out images" in quantised.sentence


@pytest.mark.parametrize("change", [0.0, 0.5])
def test_the_original_is_exported_once_in_a_conversion_and_its_bundle(
    change: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its timing and its file come of one export; weights that were changed in between are exported again."""
    made: list[nn.Module] = []
    run = exporter.run_exporter
    monkeypatch.setattr(exporter, "run_exporter", lambda model, *rest: made.append(model) or run(model, *rest))
    subject = net().eval()
    settings: dict[str, Any] = {"goal": cs.Budget(macs=0.6), "runtime": Runtime(cache=tmp_path / "cache")}
    result = cs.convert(subject, images(1), calibration=False, progress=False, **settings)
    with torch.no_grad():
        next(subject.parameters()).add_(change)
    bundle = export(result, tmp_path / "out")
    assert result.changes
    assert [made.count(one) for one in (subject, result.model)] == [1 + (change > 0), 1]
    assert bundle.original.parity.passed
    cs.onnx.export(subject, images(1), tmp_path / "plain.onnx", metadata=dict(_metadata(bundle.original.path)))
    assert (tmp_path / "plain.onnx").read_bytes() == bundle.original.path.read_bytes()


def _metadata(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


@pytest.mark.parametrize("agrees", [True, False])
def test_layers_stay_in_float_only_where_the_clock_agrees(
    agrees: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With int8 too far off, a file with some layers in float is tried, and kept if it is the fastest near enough."""
    tried: list[float] = []
    honest, measured = networks.recommend, networks.compare_files

    def compare(original: Any, others: Any, shown: Any) -> Any:
        """Int8 is worse than float, whatever this processor makes of it, but for two layers or more in float."""
        found = measured(original, others, shown)
        left = [sum(layer.excluded for layer in getattr(one, "layers", ())) for one in others]
        errors = [
            0.0 if count >= 2 else 2.0 - (one.name == "model.onnx") for one, count in zip(found, left, strict=True)
        ]
        return [dataclasses.replace(one, error=error) for one, error in zip(found, errors, strict=True)]

    def allowed(lost: dict[str, float], *_: object) -> float:
        tried.append(lost["model-int8.onnx"])
        return 0.1 * lost["model.onnx"] + 0.9 * lost["model-int8.onnx"]

    def recommend(timings: Any, lost: dict[str, float], most: float, chosen: str) -> Any:
        assert lost[int8_files.MIXED] <= most < lost["model-int8.onnx"]
        found = honest(timings, lost, most, chosen)
        return dataclasses.replace(found, name=int8_files.MIXED if agrees else "original.onnx")

    monkeypatch.setattr(networks, "allowed_loss", allowed)
    monkeypatch.setattr(networks, "recommend", recommend)
    monkeypatch.setattr(networks, "compare_files", compare)
    settings: dict[str, Any] = {"pairs": 50, "runtime": Runtime(threads=1), "progress": False}
    bundle = cs.export(converted(), tmp_path / "out", int8=True, calibration=images(), **settings)
    assert len(tried) == 1
    assert (bundle.folder / int8_files.MIXED).is_file() == agrees
    names = list(bundle.sizes)
    assert (int8_files.MIXED in names) == agrees
    assert bundle.bench is not None
    assert [row.name for row in bundle.bench.main.rows] == names
    if agrees:
        (mixed,) = (one for one in bundle.quantized if one.path.name == int8_files.MIXED)
        assert sum(layer.excluded for layer in mixed.layers) == 2  # one did not do
        assert "ship model-mixed.onnx. " in bundle.sentence
