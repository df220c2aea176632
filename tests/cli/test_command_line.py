"""The command line: exit codes, one line per error, nothing lost."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import convsurgeon as cs
from convsurgeon import cli
from convsurgeon.base.files import new_file, new_folder
from convsurgeon.base.version import version
from convsurgeon.cli import options
from convsurgeon.cli.commands import COMMANDS
from convsurgeon.forms import catalogue
from convsurgeon.graph.load import load_function, load_model, load_weights
from tests import nets, networks

NET = f"{nets.__file__}:Plain"
MODEL = [NET, "--input", "2x3x12x12"]
HUGE = "1x3x999999999x999999999"


def _error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Runs a command that must fail, and gives its one line."""
    assert cli.main(arguments) == 1
    lines = capsys.readouterr().err.splitlines()  # the last one, behind those about progress
    assert all(line.startswith("convsurgeon: ") for line in lines)
    return lines[-1] + "\n"


@pytest.mark.parametrize(
    "command", [["inspect"], ["plan", "--rank", "2"], ["convert", "--rank", "2", "--calibrate", "none", "--verbose"]]
)
def test_tables_and_json(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command[0], *MODEL, *command[1:]]) == 0
    assert "body" in capsys.readouterr().out
    plain = [word for word in command[1:] if word != "--verbose"]
    assert cli.main([command[0], *MODEL, *plain, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_help_is_one_screen_with_two_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main([command, "--help"])
    text, examples = capsys.readouterr().out.split("examples:\n")
    assert len(text.splitlines()) < 50
    assert [line.split()[:2] for line in examples.splitlines()] == [["convsurgeon", command]] * 2


@pytest.mark.parametrize("command", ["convert", "recover"])
def test_help_is_one_screen_and_the_rest_is_asked_for(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    printed = []
    for word in ("--help", "--help-all", "--help"):
        with pytest.raises(SystemExit, match="0"):
            cli.main([command, word])
        printed.append(capsys.readouterr().out)
    short, every, again = printed
    assert short == again
    assert len(short.splitlines()) <= 50
    assert len(short) < len(every)
    for word in ("--metric", "--help-all", "examples:"):
        assert word in short
    for word in ("--seed", "--pairs", "--json"):
        assert word in every
        assert word not in short


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"convsurgeon {version()}\n"


def test_a_warning_is_said_once_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "warning.py"
    file.write_text(
        "import warnings\nfrom torch import nn\n"
        "def net():\n    for _ in range(3): warnings.warn('mind the gap')\n    warnings.warn('and the step')\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3))\n"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        shown = warnings.showwarning
        assert cli.main(["inspect", f"{file}:net", "--input", "1x3x12x12"]) == 0
        assert warnings.showwarning is shown
    told = capsys.readouterr().err.splitlines()
    assert told == ["convsurgeon: warning: mind the gap", "convsurgeon: warning: and the step"]


def test_json_is_json_whatever_the_model_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "loud.py"
    file.write_text(
        "from torch import nn\nprint('loading')\n"
        "class Loud(nn.Conv2d):\n"
        "    def forward(self, x):\n        print('forward')\n        return super().forward(x)\n"
        "def net():\n    print('factory')\n    return nn.Sequential(nn.Conv2d(3, 8, 3), Loud(8, 8, 3))\n"
        "def score(model):\n    print('scoring')\n    return 1\n"
    )
    command = [f"{file}:net", "--input", "1x3x12x12", "--json"]
    for words in (["inspect"], ["plan"], ["convert", "--calibrate", "none", "--metric", f"{file}:score"]):
        assert cli.main([words[0], *command, *words[1:]]) == 0
        printed = capsys.readouterr()
        assert json.loads(printed.out)
        assert "loading" in printed.err
        assert "factory" in printed.err


@pytest.mark.parametrize("command", [["plan"], ["convert", "--calibrate", "none"]])
def test_a_budget_is_kept_or_refused(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    budget = ["--budget", "macs=0.5", "--form", "separable", "cp", "--rank", "1", "2", "8"]
    assert cli.main([*command, *MODEL, *budget, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)
    assert "cannot be reached; the least is" in _error([*command, *MODEL, "--budget", "macs=0.001"], capsys)
    with pytest.raises(SystemExit, match="2"):
        cli.main([*command, *MODEL, "--budget", "mac=0.5"])
    assert "cannot read 'mac=0.5'" in capsys.readouterr().err


def test_linear_layers_are_sites_where_they_are_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "headed.py"
    file.write_text(
        "from torch import nn\n"
        "def net():\n"
        "    head = nn.Linear(800, 128), nn.ReLU(), nn.Linear(128, 5)\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), *head)\n"
    )
    model = [f"{file}:net", *MODEL[1:]]
    command = ["convert", *model, "--form", "lowrank", "--rank", "8", "--calibrate", "none", "--pairs", "0", "--linear"]
    assert cli.main([*command, "--out", str(tmp_path / "out")]) == 0  # the large one
    plan = cs.Plan.load(tmp_path / "out" / "plan.json")
    assert list(plan.changes) == ["2.conv"]
    capsys.readouterr()
    assert "no linear layer is named 'head'" in _error([*command, "head"], capsys)
    assert "no layer is left of the 1 of 4, 0 of them of 65536 weights" in _error([*command, "4"], capsys)
    assert "leave out --linear" in _error(["inspect", str(tmp_path / "out" / "model.onnx"), "--linear"], capsys)


def test_convert_writes_a_bundle_whole_or_not_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = [
        "convert",
        *MODEL,
        "--form",
        "blueprint",
        "--rank",
        "1",
        "--calibrate",
        "none",
        "--out",
        str(out),
        "--pairs",
        "0",
    ]
    assert cli.main(command) == 0
    names = {"model.onnx", "original.onnx", "plan.json", "report.html", "README.md", "weights.safetensors"}
    assert names <= {path.name for path in out.iterdir()}
    fresh = cs.rebuild(nets.Plain(), cs.Plan.load(out / "plan.json"))
    load_weights(fresh, out / "weights.safetensors")
    assert "exists already" in _error(command, capsys)
    assert cli.main([*command, "--force", "--plan", str(out / "plan.json")]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_interrupt_leaves_the_old_bundle(
    tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["convert", *MODEL, "--rank", "1", "--calibrate", "none", "--out", str(out), "--pairs", "0", "--force"]
    assert cli.main(command) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("convsurgeon.bundle.networks.save_weights", interrupted)
    capsys.readouterr()
    assert cli.main(command) == 130
    assert capsys.readouterr().err.endswith("convsurgeon: interrupted; nothing was written\n")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_force_never_replaces_a_folder_that_is_no_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    command = ["convert", *MODEL, "--rank", "1", "--calibrate", "none", "--pairs", "0", "--force", "--out"]
    assert "thesis.txt" in _error([*command, str(tmp_path)], capsys)
    assert "is not a folder" in _error([*command, str(tmp_path / "thesis.txt")], capsys)
    assert "no such folder" in _error([*command, str(tmp_path / "none" / "out")], capsys)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_metric_is_printed_before_and_after(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metric = tmp_path / "metric.py"
    metric.write_text("def size(model): return sum(p.numel() for p in model.parameters())\ndef bad(model): 1 / 0\n")
    assert (
        cli.main(["convert", *MODEL, "--rank", "1", "--calibrate", "none", "--metric", f"{metric}:size", "--json"]) == 0
    )
    rows = {row[""]: row for row in json.loads(capsys.readouterr().out)["report"]["summary"]}
    assert rows["size"]["after"] == rows["params"]["after"] < rows["size"]["before"]
    assert "the metric fails (ZeroDivisionError" in _error(
        ["convert", *MODEL, "--calibrate", "none", "--metric", f"{metric}:bad"], capsys
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", NET, "--input", "2x5x12x12"], "does not run on an input of shape 2x5x12x12"),
        (["inspect", "nowhere.py:net", "--input", "1x3x8x8"], "nowhere.py: no such file"),
        (["inspect", "no.such.module:net", "--input", "1x3x8x8"], "no.such.module cannot be imported"),
        (["inspect", f"{nets.__file__}:Plane", "--input", "1x3x8x8"], "has no 'Plane'; did you mean Plain"),
        (["inspect", f"{nets.__file__}:Answer", "--input", "1x3x8x8"], "the factory fails (TypeError"),
        (["inspect", "justaname", "--input", "1x3x8x8"], "expected package.module:factory"),
        (["plan", *MODEL, "--select", "named(bode)"], "did you mean body"),
        (["plan", *MODEL, "--rank", "0"], "rank must be at least 1"),
        (["inspect", "net.pt", "--input", "1x3x8x8"], "weights go to --weights"),
        (["convert", *MODEL, "--metric", "accuracy"], "accuracy: expected file.py:function"),
        (["convert", *MODEL, "--plan", "none.json"], "none.json: does not exist"),
        (["convert", *MODEL, "--calibrate", "none.npy"], "none.npy: does not exist"),
        (["convert", *MODEL, "--weights", "none.safetensors"], "none.safetensors: does not exist"),
        (["bench", "none.onnx", "none.onnx"], "none.onnx"),
        (["convert", *MODEL, "--weights", "/dev/zero"], "/dev/zero: is a folder, a device or a pipe"),
        (["convert", *MODEL, "--calibrate", "/dev/zero"], "/dev/zero: is a device or a pipe"),
    ],
)
def test_errors_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in _error(arguments, capsys)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["operate"],
        ["plan"],
        ["plan", NET, "--input", "3x0"],
        ["inspect", NET, "--input", HUGE],
        ["plan", *MODEL, "--select", "kernel(3)"],
    ],
)
def test_usage_errors_exit_with_two_and_a_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert " --help" in line


def test_an_unknown_option_is_answered_with_the_one_that_was_meant(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["convert", *MODEL, "--calibration", "photos"])
    assert "--calibration; did you mean --calibrate" in capsys.readouterr().err


_WITHOUT_TORCH = """
import sys
from convsurgeon.cli.main import main, parse
for arguments in {good}:
    parse(arguments)
for arguments in {bad}:
    assert main(arguments) == 1, arguments
assert "torch" not in sys.modules
"""


def test_arguments_and_paths_are_checked_before_torch_loads(tmp_path: Path) -> None:
    """It takes seconds to load."""
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("")
    wrong = ("--weights", "--calibrate", "--plan", "--device", "--metric", "--out")
    paths = {"--metric": "none.py:f", "--out": str(tmp_path / "there")}
    bad = [["convert", *MODEL, option, paths.get(option, "absent")] for option in wrong]
    bad += [["bench", "none.onnx"], ["recover", *MODEL, "--from", "none"], ["inspect", "none.onnx"]]
    good = [["convert", *MODEL, "--calibrate", "photos", "--within", "1.0"], ["sweep", *MODEL], ["bench", "a.onnx"]]
    code = _WITHOUT_TORCH.format(good=good, bad=bad)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == len(bad)


def test_forms_have_the_names_that_the_command_line_takes() -> None:
    assert tuple(form.word for form in catalogue.FORMS) == options.FORMS


def test_a_file_may_import_what_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "beside_it.py").write_text("from torch import nn\ndef layer(): return nn.Linear(2, 2)\n")
    (tmp_path / "whole.py").write_text("from beside_it import layer\n")
    path = list(sys.path)
    assert isinstance(load_model(f"{tmp_path / 'whole.py'}:layer"), nn.Linear)
    assert sys.path == path


def _state(prefix: str = "") -> dict[str, torch.Tensor]:
    return {prefix + name: tensor + 1 for name, tensor in nets.Plain().state_dict().items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": {f"module.{name}": tensor for name, tensor in state.items()}},
        lambda state: {f"_orig_mod.{name}": tensor for name, tensor in state.items()},
        lambda state: {"state_dict": {f"net.{name}": tensor for name, tensor in state.items()}, "epoch": 3},
        lambda state: {"n_averaged": torch.ones(()), **{f"module.{name}": tensor for name, tensor in state.items()}},
    ],
)
def test_checkpoints_are_unwrapped(wrap: Any, tmp_path: Path) -> None:
    state = _state()
    torch.save(wrap(state), tmp_path / "net.pt")
    model = nets.Plain()
    load_weights(model, tmp_path / "net.pt")
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_averaged_weights_beside_those_that_are_loaded_are_told(tmp_path: Path) -> None:
    averaged = {"n_averaged": torch.ones(()), **_state("module.")}
    torch.save({"model": nets.Plain().state_dict(), "model_ema": averaged, "optimizer": {}}, tmp_path / "net.pt")
    with pytest.warns(UserWarning, match=r"net\.pt: .*'model' and model_ema"):
        load_weights(nets.Plain(), tmp_path / "net.pt")


def test_mismatches_are_listed(tmp_path: Path) -> None:
    state = _state()
    state["extra.weight"] = state.pop("head.bias")
    state["body.weight"] = torch.zeros(8, 16, 3, 3)
    save_file(state, tmp_path / "net.safetensors")
    message = r"1 missing: head.bias; 1 unexpected: extra.weight; 1 of another shape: body.weight \(8, 16, 3, 3\)"
    with pytest.raises(cs.errors.LoadError, match=message):
        load_weights(nets.Plain(), tmp_path / "net.safetensors")


def _torchscript(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/code/__torch__.py", "raise SystemExit")


def _program(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/archive_format", "pt2")


def _truncated(path: Path) -> None:
    save_file(_state(), path)
    path.write_bytes(path.read_bytes()[:200])


def _halved(path: Path) -> None:
    torch.save(_state(), path)
    path.write_bytes(path.read_bytes()[:2000])


def _unreadable(path: Path) -> None:
    """A zip archive whose directory holds a name that is no UTF-8."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("nét", "")
    path.write_bytes(path.read_bytes().replace("é".encode(), b"\xd6n"))


def _deflated(path: Path) -> None:
    """What torch would inflate without a limit."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/data.pkl", bytes(1000))


def _on_many_disks(path: Path) -> None:
    """A zip archive that says it is in parts, found by fuzzing."""
    torch.save(_state(), path)
    data = bytearray(path.read_bytes())
    at = data.rfind(b"PK\x06\x07")  # the locator of the directory's end; its last field counts the disks
    data[at + 16 : at + 20] = b"\x09\0\0\0"
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(b"garbage" * 50), "is not a weight file"),
        (lambda path: torch.save(nets.Plain(), path), "holds pickled objects besides tensors"),
        (lambda path: torch.save([1, 2], path), "holds a list, not a state dict"),
        (lambda path: torch.save({"a": 1}, path), "holds no tensors"),
        (_torchscript, "is a TorchScript archive"),
        (_program, r"is an exported program \(.pt2\)"),
        (_truncated, "is a damaged safetensors file"),
        (_halved, "is not a weight file"),
        (_unreadable, "is not a weight file"),
        (_on_many_disks, "is not a weight file"),
        (_deflated, "is compressed, which torch.save does not do"),
    ],
    ids=[
        *("empty", "garbage", "pickle", "list", "numbers", "script"),
        *("program", "truncated", "halved", "unreadable", "disks", "deflated"),
    ],
)
def test_files_that_are_no_weights(make: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "net.bin"
    make(path)
    with pytest.raises(cs.errors.LoadError, match=f"net.bin: {message}"):
        load_weights(nets.Plain(), path)


def test_factories_by_file_module_and_instance(tmp_path: Path) -> None:
    file = tmp_path / "made.py"
    file.write_text("from torch import nn\nready = nn.Linear(2, 2)\ndef wide(n=2): return nn.Linear(n, n)\n")
    assert isinstance(load_model(f"{file}:ready"), nn.Linear)
    assert load_model(f"{file}:wide", {"n": 5}).in_features == 5
    assert load_function("json:dumps") is json.dumps
    with pytest.raises(cs.errors.LoadError, match=r"gives a str, not a torch.nn.Module"):
        load_model("os:getcwd")


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError, match="division"), new_file(tmp_path / "a.txt") as path:
        path.write_text(str(1 / 0))
    with pytest.raises(ZeroDivisionError, match="division"), new_folder(tmp_path / "a") as path:
        (path / "b").write_text(str(1 / 0))
    assert not list(tmp_path.iterdir())


def test_a_path_that_the_system_refuses_is_told_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    found = _error(["inspect", f"{'9' * 300}.py:Plain", "--input", "1x3x8x8"], capsys)
    assert "File name too long; choose another path" in found
    assert len(found) < 300


def test_a_torchvision_model_of_a_family_has_a_name() -> None:
    networks.import_torchvision()
    assert type(load_model("torchvision:segmentation.lraspp_mobilenet_v3_large", {"weights_backbone": None})).__name__
    with pytest.raises(cs.errors.LoadError, match=r"torchvision:segmentation.lrasp: .* did you mean lraspp"):
        load_model("torchvision:segmentation.lrasp")
    with pytest.raises(cs.errors.LoadError, match=r"torchvision:nothing.resnet18: torchvision.models.nothing cannot"):
        load_model("torchvision:nothing.resnet18")


def _two_inputs(tmp_path: Path, **arrays: Any) -> list[str]:
    np.savez(tmp_path / "data.npz", **arrays)
    model = ["convert", "tests/nets.py:KeywordInputs", "--input", "1x3x12x12", "1x1x1x1", "--rank", "2"]
    return [*model, "--calibrate", str(tmp_path / "data.npz"), "--json"]


def test_several_inputs_are_calibrated_from_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, scales = np.random.default_rng(0).normal(size=(80, 3, 12, 12)), np.ones((80, 1, 1, 1))
    for arrays in ({"scale": scales, "x": images}, {"a": images, "b": scales}):
        assert cli.main(_two_inputs(tmp_path, **arrays)) == 0
        report = json.loads(capsys.readouterr().out)["report"]
        assert report["calibration"]
    message = "holds x; the network takes x, scale"
    assert message in _error(_two_inputs(tmp_path, x=images), capsys)
    assert "as many rows in each" in _error(_two_inputs(tmp_path, x=images, scale=scales[:3]), capsys)
    assert "mean" in _error([*_two_inputs(tmp_path, x=images, scale=scales), "--mean", "0.5"], capsys)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(value: float, tmp_path: Path) -> None:
    state = nets.Plain().state_dict()
    state["body.weight"][0] = value
    save_file(state, tmp_path / "broken.safetensors")
    model = nets.Plain()
    before = model.body.weight.detach().clone()
    with pytest.raises(cs.errors.LoadError, match=r"broken.safetensors: .*body.weight"):
        load_weights(model, tmp_path / "broken.safetensors")
    assert torch.equal(model.body.weight, before)


def _bundle(tmp_path: Path) -> list[str]:
    """A bundle, and the command that takes it up."""
    torch.manual_seed(3)
    save_file(nets.Plain().state_dict(), tmp_path / "w.safetensors")
    np.save(tmp_path / "images.npy", np.random.default_rng(0).normal(size=(80, 3, 12, 12)).astype(np.float32))
    model = ["tests/nets.py:Plain", "--weights", str(tmp_path / "w.safetensors"), "--input", "1x3x12x12"]
    made = ["--rank", "2", "--calibrate", "none", "--out", str(tmp_path / "b"), "--pairs", "0"]
    assert cli.main(["convert", *model, *made]) == 0
    taken = ["--from", str(tmp_path / "b"), "--data", str(tmp_path / "images.npy"), "--epochs", "1", "--lr", "1e-3"]
    return ["recover", *model, *taken]


def test_recover_takes_up_its_own_bundle_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = _bundle(tmp_path)
    assert cli.main(command) == 0
    capsys.readouterr()
    torch.manual_seed(4)
    save_file(nets.Plain().state_dict(), tmp_path / "w.safetensors")
    assert "made from an original with other weights" in _error(command, capsys)


@pytest.mark.parametrize("name", ["plan.json", "weights.safetensors", "model.onnx"])
def test_recover_looks_at_the_checksums(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = _bundle(tmp_path)
    capsys.readouterr()
    file = tmp_path / "b" / name
    file.write_bytes(file.read_bytes() + b"\n")
    assert f"{name}: is not what SHA256SUMS says" in _error(command, capsys)
    (tmp_path / "b" / "SHA256SUMS").write_bytes(b"\xff\xfe")
    assert "SHA256SUMS: cannot be read" in _error(command, capsys)


def test_recover_takes_no_weights_that_are_no_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = _bundle(tmp_path)
    capsys.readouterr()
    state = load_file(tmp_path / "b" / "weights.safetensors")
    state["head.weight"].fill_(float("nan"))
    save_file(state, tmp_path / "b" / "weights.safetensors")
    (tmp_path / "b" / "SHA256SUMS").unlink()
    assert "NaN or infinity in" in _error(command, capsys)


@pytest.mark.parametrize("arguments", [["--weights", ""], ["--weights="]], ids=" ".join)
def test_an_empty_option_is_not_left_out_in_silence(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["inspect", *MODEL, *arguments])
    assert "error: argument --weights: is empty; say what is meant, or leave it out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("raise SystemExit(0)", "make", "fails when it is imported (SystemExit: 0)"),
        ("def make(): raise SystemExit", "make", "the factory fails (SystemExit)"),
    ],
    ids=["import", "factory"],
)
def test_a_script_that_ends_the_process_is_told(
    text: str, name: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "script.py").write_text(text)
    assert cli.main(["inspect", f"{tmp_path / 'script.py'}:{name}", "--input", "1x3x16x16"]) == 1
    assert message in capsys.readouterr().err


def test_names_with_a_nul_are_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", *MODEL, "--weights", "a\0b"]) == 1
    assert cli.main(["plan", *MODEL, "--budget", "latency=0.9", "--device", "a\0b"]) == 1
    told = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1] for line in told] == ["a\\x00b"] * 2
    assert not [line for line in told if "internal error" in line]


def test_a_name_with_half_a_character_is_refused() -> None:
    model = nn.Sequential()
    model.add_module("\ud800", nn.Conv2d(3, 4, 3))
    with pytest.raises(cs.errors.CaptureError, match=r"'\\ud800'"):
        cs.plan(model, torch.randn(1, 3, 8, 8), forms=[cs.DepthwiseSeparable(rank=1)])
