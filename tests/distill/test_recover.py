"""Recovery: never worse than it began, the same however often it is interrupted and by however many it is run."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import convsurgeon as cs
from convsurgeon.cli.main import main
from convsurgeon.distill.batches import Stream, split, training_set
from convsurgeon.distill.distiller import SLOWER
from convsurgeon.distill.loss import OutputJudge
from convsurgeon.distill.recipe import LEAST_STEPS, Recipe
from convsurgeon.distill.record import Recovery, Score
from convsurgeon.recovery import RATES
from tests import nets, networks

X = torch.randn(160, 3, 12, 12, generator=torch.Generator().manual_seed(3))
LIKE = cs.Example((X[:2],))


@pytest.fixture
def converted() -> cs.Result:
    return _converted(nets.Plain())


def _converted(model: nn.Module, images: Tensor = X) -> cs.Result:
    torch.manual_seed(1)
    for parameter in model.parameters():  # random weights of a real size: the nets' own answers hardly vary
        nn.init.kaiming_normal_(parameter) if parameter.dim() > 1 else nn.init.uniform_(parameter, 0.5, 1.5)
    form = cs.DepthwiseSeparable(rank=1)
    return cs.convert(
        model.eval(), images[:2], forms=[form], policy=cs.select.everything(), progress=False, calibration=False
    )


def _recover(
    result: cs.Result, images: object = X, *, run: Path | None = None, resume: bool = False, **settings: Any
) -> cs.Result:
    recipe = cs.Recipe(**({"epochs": 2, "batch_size": 16, "lr": 1e-3} | settings))
    return cs.recover(result, images, recipe=recipe, run=run, resume=resume, progress=False)


def _done(result: cs.Result) -> Recovery:
    return result.report.recovery


def _same(one: nn.Module, two: nn.Module) -> bool:
    a, b = one.state_dict(), two.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# What it gives.


def test_it_brings_much_of_the_lost_back(converted: cs.Result) -> None:
    better = _recover(converted, epochs=10, lr=3e-3)
    assert _done(better).after.error < 0.3 * _done(better).before.error
    assert _done(better).best_step > 0
    assert better.plan == converted.plan
    assert "Recovery: 144 images, judged on 16 others" in str(better.report)
    assert json.loads(better.report.to_json())["recovery"][1]["weights"].startswith("step")


@pytest.mark.parametrize("name", list(nets.CONVERTIBLE))
def test_every_net_ends_no_worse_and_the_input_is_untouched(name: str) -> None:
    result = _converted(nets.CONVERTIBLE[name]())
    before = [{key: value.clone() for key, value in m.state_dict().items()} for m in (result.original, result.model)]
    modes = [module.training for module in result.model.modules()]
    options: dict[str, Any] = {"epochs": 1, "batch_size": 48}
    better = _recover(result, X[:96], **options)
    assert _done(better).after.error <= _done(better).before.error
    for model, state in zip((result.original, result.model), before, strict=True):
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert [module.training for module in better.model.modules()] == modes
    assert not [parameter for parameter in result.model.parameters() if parameter.grad is not None]


def test_a_rate_that_destroys_gives_the_converted_weights_back(converted: cs.Result) -> None:
    better = _recover(converted, lr=1e4)
    assert _same(better.model, converted.model)
    assert _done(better).after == _done(better).before
    assert "as converted, kept" in str(better.report)


def test_a_quarter_that_led_away_is_taken_back_and_two_end_it(converted: cs.Result) -> None:
    wild = _done(_recover(converted, lr=3.0, epochs=4))
    assert wild.ended == "no better state in 2 quarters"
    slowed = _done(_recover(converted, lr=1.4, epochs=8))
    rates = [row["lr"] for row in slowed.rows]
    assert slowed.ended == "all steps done"
    assert slowed.after.error < slowed.before.error
    highest = {row["step"]: row["lr"] for row in slowed.rows}
    assert max(rate for step, rate in highest.items() if 0 < step <= 18) > 1.1
    assert all(rate <= 1.4 / SLOWER for step, rate in highest.items() if step > 18), rates


def test_few_images_get_steps_enough_and_small_batches(converted: cs.Result) -> None:
    done = _done(cs.recover(converted, X[:40], progress=False))
    assert (done.images, done.held_back, done.batch_size, done.steps) == (36, 4, 8, LEAST_STEPS)
    assert len(done.trials) == 4
    assert done.after.error < done.before.error
    assert Recipe().batch(7000) == 64
    assert Recipe().steps(110) == 2200


def test_images_that_the_conversion_held_back_judge_again(converted: cs.Result) -> None:
    unseen = (cs.Example((X[70:80],)), cs.Example((X[90:96],)))
    result = dataclasses.replace(converted, held_back=unseen)
    own = OutputJudge(converted.original, unseen).score(converted.model).error
    assert _done(_recover(result)).before.error == pytest.approx(own, rel=1e-5)
    assert _done(_recover(converted)).before.error != pytest.approx(own, rel=1e-5)
    numbers, held = split(160, 4, 0, training_set(X, LIKE).find(unseen))  # no more than are asked for
    assert set(held.tolist()) < {*range(70, 80), *range(90, 96)}
    assert len(numbers) == 156
    assert training_set(TensorDataset(X), LIKE).find(unseen) == []


def _ended(distances: list[float]) -> Recovery:
    """A run of as many steps as distances, the first being its start."""
    rows = tuple({"step": float(step), "error": value} for step, value in enumerate(distances))
    best = min(distances)
    scores = (Score(distances[0], None), Score(best, None))
    return Recovery(*scores, distances.index(best), len(distances) - 1, 8, 80, 8, 1e-3, 1.0, "", (), rows)


@pytest.mark.parametrize(
    ("distances", "gaining"),
    [
        ([1.0, 0.9, 0.8, 0.7, 0.6], True),
        ([1.0, 0.5, 0.4, 0.4, 0.39], False),
        ([1.0, 0.5, 0.4, 0.3, 0.5], False),
        ([1.0, 1.1, 1.2, 1.3, 1.4], False),
    ],
)
def test_a_run_that_still_gains_says_so(distances: list[float], gaining: bool, converted: cs.Result) -> None:
    assert _ended(distances).gaining is gaining
    report = dataclasses.replace(converted.report, recovery=_ended(distances))
    assert ("still gaining: recover this result once more" in str(report)) is gaining


def test_a_log_whose_beginning_is_lost_is_read() -> None:
    done = _ended([1.0, 0.9, 0.8, 0.7, 0.6])
    assert dataclasses.replace(done, rows=done.rows[-1:]).gaining


def test_a_loss_that_is_not_finite_ends_it_with_the_reason(converted: cs.Result) -> None:
    better = _recover(converted, loss=lambda given, _answer: given.sum() * float("nan"))
    assert _same(better.model, converted.model)
    assert _done(better).ended == "the loss became nan in step 1"


def test_a_loss_that_is_not_finite_once_is_taken_back_and_the_run_goes_on_slower(converted: cs.Result) -> None:
    calls = itertools.count()

    def loss(given: Tensor, answer: Tensor) -> Tensor:
        learns = given.requires_grad and next(calls) == 3
        return (given - answer).square().mean() * (float("nan") if learns else 1.0)

    done = _done(_recover(converted, loss=loss, lr=1e-4))
    assert done.ended == "all steps done"
    assert next(calls) == done.steps
    assert all(row["lr"] <= 1e-4 / SLOWER for row in done.rows if row["step"] > 4)


def test_without_a_rate_the_next_faster_than_the_best_of_short_trials_is_taken(converted: cs.Result) -> None:
    done = _done(_recover(converted, lr=None, epochs=1, batch_size=48))
    assert len(done.trials) == 4
    best = min(done.trials, key=lambda trial: trial[1])[0]
    assert done.lr == min(max(RATES), min((rate for rate in RATES if rate > best), default=best))


def test_format_dtype_mode_and_gradient_flags_stay() -> None:
    model = nets.Plain().double().train()
    model.down.weight.requires_grad_(False)
    frozen = model.down.weight.clone()
    result = cs.convert(model, X[:2].double(), forms=[cs.Blueprint(rank=1)], progress=False, calibration=False)
    better = _recover(result, X.double())
    assert all(module.training for module in better.model.modules())
    assert {parameter.dtype for parameter in better.model.parameters()} == {torch.float64}
    assert [p.requires_grad for p in better.model.parameters()] == [p.requires_grad for p in result.model.parameters()]
    for name, parameter in better.model.named_parameters():
        assert parameter.is_contiguous(), name
        if not parameter.requires_grad:
            assert torch.equal(parameter, result.model.get_parameter(name))
    assert torch.equal(model.down.weight, frozen)


def test_norm_statistics_stay(converted: cs.Result) -> None:
    def statistics(result: cs.Result) -> list[Tensor]:
        return [value for name, value in result.model.state_dict().items() if "running" in name]

    assert statistics(converted)
    assert all(map(torch.equal, statistics(_recover(converted)), statistics(converted)))


def test_the_users_own_parts_are_used(converted: cs.Result) -> None:
    asked: list[str] = []

    def transform(images: Tensor) -> Tensor:
        asked.append("transform")
        return images.flip(3)

    def loss(given: Tensor, answer: Tensor) -> Tensor:
        asked.append("loss")
        return (given - answer).abs().mean()

    _recover(converted, lr=None, epochs=1, transform=transform, loss=loss)
    assert {"transform", "loss"} == set(asked)


def test_chance_outside_is_left_alone(converted: cs.Result) -> None:
    states = [torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()]
    _recover(converted, transform=lambda images: images + 0.1 * torch.randn_like(images))
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()
    assert states[2] == random.getstate()


# The batches.


class Jittered(Dataset[Any]):
    """A data set that augments as most do: with whatever generator lies at hand."""

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return X[index] + 0.1 * torch.randn(()) + 0.1 * float(np.random.rand()) + 0.1 * random.random(), index


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        while True:
            yield X[0]


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("start", [0, 1, 7, 11])
def test_processes_share_the_batches_of_one(processes: int, start: int, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers, _ = split(160, 16, 0)
    rows = training_set(torch.arange(160.0).view(-1, 1, 1, 1).expand(-1, 3, 12, 12), LIKE)
    stream = Stream(rows, numbers, 16, seed=4)
    alone = [sorted(batch.args[0][:, 0, 0, 0].tolist()) for batch in stream.steps(0, 14)]
    monkeypatch.setattr("convsurgeon.base.processes.size", lambda: processes)
    shares: list[list[list[float]]] = []  # process, step, image
    for rank in range(processes):
        monkeypatch.setattr("convsurgeon.base.processes.rank", lambda rank=rank: rank)
        shares.append([batch.args[0][:, 0, 0, 0].tolist() for batch in stream.steps(start, 14)])
    assert [sorted(itertools.chain(*parts)) for parts in zip(*shares, strict=True)] == alone[start:]
    assert len({number for batch in alone[:9] for number in batch}) == 144


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine of one core
@pytest.mark.parametrize("workers", [0, 2])
def test_random_data_sets_give_the_same_again(workers: int) -> None:
    loader = DataLoader(Jittered(), batch_size=7, shuffle=True, num_workers=workers)
    one = training_set(loader, LIKE)
    stream = Stream(one, torch.arange(160), 16, seed=0)
    whole = [batch.args[0] for batch in stream.steps(0, 6)]
    torch.manual_seed(99)
    again = [batch.args[0] for batch in stream.steps(3, 6)]
    assert all(map(torch.equal, whole[3:], again))
    assert not torch.equal(whole[0].sort(0).values, whole[1].sort(0).values)


def test_all_kinds_of_data_are_read() -> None:
    kinds: list[tuple[Any, int]] = [
        (X, 160),
        (X.numpy(), 160),
        ([X[:50], X[50:]], 160),
        ((X[i : i + 9] for i in range(0, 160, 9)), 160),
        (TensorDataset(X), 160),
        (DataLoader(TensorDataset(X, torch.arange(160)), batch_size=3), 160),
        ([(X, torch.arange(160))], 160),
    ]
    for batches, count in kinds:
        found = training_set(batches, LIKE)
        assert len(found) == count
        assert torch.equal(found.take([5, 3], 8)[0].args[0], X[[5, 3]])
    assert len(training_set(DataLoader(Endless(), batch_size=10), LIKE, limit=35)) == 40


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"epochs": 0}, cs.errors.RecoveryError, "epochs"),
        ({"lr": -1.0}, cs.errors.RecoveryError, "lr"),
        ({"lr": float("nan")}, cs.errors.RecoveryError, "lr"),
        ({"precision": "int4"}, cs.errors.RecoveryError, "precision must be one of fp32, int8, got 'int4'"),
        ({"resume": True}, cs.errors.RecoveryError, "resume needs the folder"),
        ({"transform": lambda _images: None}, cs.errors.RecoveryError, "the transform fails"),
        ({"images": X[:1]}, cs.errors.CalibrationError, "1 images; pass at least two"),
        ({"images": []}, cs.errors.CalibrationError, "no images"),
        ({"images": X[:, :2]}, cs.errors.CalibrationError, "has shape"),
        ({"images": [X[:4], X[:4, :, :8]]}, cs.errors.CalibrationError, "cannot be mixed"),
        ({"images": X / 0}, cs.errors.CalibrationError, "NaN or infinity"),
    ],
)
def test_bad_input_is_refused_in_a_line(
    options: dict[str, Any], error: type[Exception], message: str, converted: cs.Result
) -> None:
    with pytest.raises(error, match=message) as raised:
        _recover(converted, **options)
    assert "\n" not in str(raised.value)


def test_what_cannot_be_recovered_is_refused(converted: cs.Result) -> None:
    untouched = cs.convert(
        nets.Plain().eval(), X[:2], policy=~cs.select.everything(), progress=False, calibration=False
    )
    with pytest.raises(cs.errors.RecoveryError, match="no conv of this result was rewritten"):
        _recover(untouched)
    for parameter in converted.model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(cs.errors.RecoveryError, match="every parameter is frozen"):
        _recover(converted)
    with torch.device("meta"):
        empty = nets.Plain().eval()
    planned = cs.convert(
        empty, torch.empty(2, 3, 12, 12, device="meta"), forms=[cs.Blueprint(rank=1)], progress=False, calibration=False
    )
    with pytest.raises(cs.errors.RecoveryError, match="on the meta device"):
        _recover(planned)


# Interruption.


def _interrupting(at: int) -> Callable[[Tensor], Tensor]:
    """A transform that presses Ctrl-C in its `at`-th step, and adds noise from two generators."""
    calls = [0]

    def transform(images: Tensor) -> Tensor:
        calls[0] += 1
        if calls[0] == at:
            signal.raise_signal(signal.SIGINT)
        return images + 0.1 * torch.randn_like(images) + 0.1 * float(np.random.rand())

    return transform


@pytest.mark.parametrize("options", [{}, {"precision": "int8"}, pytest.param({"lr": None}, marks=pytest.mark.slow)])
def test_interruptions_change_no_bit(options: dict[str, Any], tmp_path: Path, converted: cs.Result) -> None:
    options = {"epochs": 4, "seed": 2, "save_every": 5} | options
    whole = _recover(converted, transform=_interrupting(0), **options)
    trials = 4 * 8 if options.get("lr", 1) is None else 0
    for at, saved in ((trials + 3, 0), (8, 5), (7, 10), (12, 20), (12, 30)):
        with pytest.raises(KeyboardInterrupt, match=rf"step {saved} of 36 is saved in"):
            _recover(converted, transform=_interrupting(at), run=tmp_path / "run", resume=True, **options)
    ended = _recover(converted, transform=_interrupting(0), run=tmp_path / "run", resume=True, **options)
    assert _same(whole.model, ended.model)
    assert _done(whole).best_step == _done(ended).best_step > 0
    held = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert held["step"] == 36
    assert [row["error"] for row in held["rows"]] == [row["error"] for row in _done(whole).rows]


def test_a_finished_run_is_not_run_again(tmp_path: Path, converted: cs.Result) -> None:
    first = _recover(converted, run=tmp_path / "run")
    with pytest.raises(cs.errors.WriteError, match="holds a run already"):
        _recover(converted, run=tmp_path / "run")
    again = _recover(converted, run=tmp_path / "run", resume=True)
    assert _same(first.model, again.model)
    assert _done(again).seconds == _done(first).seconds
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"last.pt", "log.csv"}
    lines = (tmp_path / "run" / "log.csv").read_text().splitlines()
    assert lines[0] == "step,loss,error,agreement,lr,seconds"
    assert len(lines) == len(_done(again).rows) + 1


def test_another_runs_checkpoint_is_refused(tmp_path: Path, converted: cs.Result) -> None:
    _recover(converted, run=tmp_path / "run", epochs=1)
    with pytest.raises(cs.errors.RecoveryError, match="was started with epochs 1, now it is 2"):
        _recover(converted, run=tmp_path / "run", resume=True)
    with pytest.raises(cs.errors.RecoveryError, match=r"with transform None, now it is Augment\(flip=True, shift=2\)"):
        _recover(converted, run=tmp_path / "run", resume=True, epochs=1, transform=cs.Augment(shift=2))
    (tmp_path / "run" / "last.pt").write_bytes(b"no")
    with pytest.raises(cs.errors.RecoveryError, match=r"last\.pt"):
        _recover(converted, run=tmp_path / "run", resume=True)


# Many processes.

SHARED = """
import os, signal, sys, torch
from pathlib import Path
import convsurgeon as cs
from convsurgeon.base import processes as world
from tests.distill.test_recover import X, _converted, _recover
from tests import nets

torch.set_num_threads(1)
folder = Path(sys.argv[1])

def transform(images):
    killed = folder / "killed"
    if len(sys.argv) > 2 and world.rank() == 1 and not killed.exists() and (folder / "run" / "last.pt").exists():
        killed.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return images

result = _converted(nets.Plain().double(), X.double())  # before the processes join, as a loaded bundle would be
with world.joined():
    better = _recover(result, X.double(), epochs=3, run=folder / "run", resume=True, save_every=5, transform=transform)
    torch.save(better.model.state_dict(), folder / f"{world.rank()}.pt")
"""


def _torchrun(folder: Path, *more: str, restarts: int = 0) -> None:
    script = folder / "shared.py"
    script.write_text(SHARED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [f"--max-restarts={restarts}", str(script), str(folder), *more]
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("kill", [pytest.param((), marks=pytest.mark.slow), ("kill",)])
def test_two_processes_match_one_and_survive_a_kill(kill: tuple[str, ...], tmp_path: Path) -> None:
    alone = _recover(_converted(nets.Plain().double(), X.double()), X.double(), epochs=3)
    _torchrun(tmp_path, *kill, restarts=len(kill))
    assert (tmp_path / "killed").exists() == bool(kill)
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert all(torch.equal(one[key], two[key]) for key in one)
    for key, value in alone.model.state_dict().items():
        torch.testing.assert_close(one[key], value, rtol=1e-6, atol=1e-8)


# From scratch.


def test_orthonormality_is_bsconvs_loss() -> None:
    form = cs.BlueprintSubspace(rank=1, width=0.5, init="random")
    result = cs.convert(
        nets.Plain().eval(), X[:2], forms=[form], policy=cs.select.everything(), progress=False, calibration=False
    )
    found = form.regularization(result.model)
    wanted = 0.0
    for name, conv in result.model.named_modules():
        if name.endswith(".subspace"):
            rows = conv.weight.detach()[:, :, 0, 0]
            wanted += float(torch.norm(rows @ rows.T - torch.eye(len(rows)), p="fro"))
    assert wanted > 0
    assert found.item() == pytest.approx(wanted, rel=1e-5)
    found.backward()
    assert cs.Blueprint(rank=1).regularization(result.model).item() == 0
    for conv in (module for name, module in result.model.named_modules() if name.endswith(".subspace")):
        nn.init.orthogonal_(conv.weight)
    assert form.regularization(result.model).item() < 1e-5


@pytest.mark.parametrize("shift", [0, 2])
def test_augmentation_keeps_every_pixel_it_can(shift: int) -> None:
    images = torch.rand(64, 3, 6, 7) + 1
    moved = cs.Augment(flip=True, shift=shift)(images)
    assert moved.shape == images.shape
    for image, other in zip(images, moved, strict=True):
        kept = set(other.flatten().tolist()) - {0.0}
        assert kept <= set(image.flatten().tolist())
        assert len(kept) >= 3 * (6 - shift) * (7 - shift)
    assert any(torch.equal(moved[i].flip(2), images[i]) for i in range(64)) or shift
    with pytest.raises(cs.errors.RecoveryError, match="0 or more pixels"):
        cs.Augment(shift=-1)


# The command.


@pytest.fixture
def bundle(tmp_path: Path) -> list[str]:
    model = ["examples/digits.py:digit_net", "--weights", "examples/digits.safetensors", "--input", "1x1x32x32"]
    assert (
        main(
            ["convert", *model, "--rank", "1", "--calibrate", "none", "--out", str(tmp_path / "bundle"), "--pairs", "0"]
        )
        == 0
    )
    return ["recover", *model, "--from", str(tmp_path / "bundle"), "--data", "examples/digits_calibration.npy"]


def test_the_command_recovers_a_bundle(bundle: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["--epochs", "2", "--batch-size", "32", "--lr", "1e-3", "--shift", "1", "--run", str(tmp_path / "run")]
    out = ["--out", str(tmp_path / "better"), "--pairs", "0", "--metric", "examples/digits.py:accuracy", "--verbose"]
    capsys.readouterr()
    assert main([*bundle, *settings, *out]) == 0
    text = capsys.readouterr().out
    assert "Recovery: 115 images" in text
    assert "accuracy, as converted" in text
    assert (tmp_path / "better" / "model.onnx").is_file()
    assert main([*bundle, *settings]) == 1
    assert "holds a run already; pass resume=True (--resume)" in capsys.readouterr().err
    assert main([*bundle, *settings, "--resume"]) == 0
    assert main([*bundle[:-4], "--from", str(tmp_path), *bundle[-2:]]) == 1
    assert "holds no plan.json; pass a folder that convert --out wrote" in capsys.readouterr().err


def test_ctrl_c_saves_and_says_where(bundle: list[str], tmp_path: Path) -> None:
    settings = [
        "--epochs",
        "2000",
        "--batch-size",
        "32",
        "--lr",
        "1e-3",
        "--run",
        str(tmp_path / "run"),
        "--save-every",
        "1",
    ]
    command = [sys.executable, "-m", "convsurgeon", *bundle, *settings]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        log = tmp_path / "run" / "log.csv"
        while not log.exists() or len(log.read_text().splitlines()) < 4:  # the head, step 0, and two more
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert errors.splitlines()[-1].startswith("convsurgeon: interrupted; step ")
    assert "is saved in" in errors
    held = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert held["step"] > 0
    assert held["ended"] == ""


@networks.needs_data
def test_resnet20_gains_from_a_few_steps() -> None:
    model, images = networks.pretrained("resnet20"), networks.cifar_calibration(256, seed=0)
    result = cs.convert(model, images[:1], forms=[cs.DepthwiseSeparable(rank=3)], progress=False, calibration=False)
    better = _recover(result, images, epochs=2, batch_size=32, transform=cs.Augment(shift=4))
    assert _done(better).after.error < 0.5 * _done(better).before.error
    assert networks.cifar_top1(better.model) > networks.cifar_top1(result.model) + 10
