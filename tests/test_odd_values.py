"""Arguments, inputs and outputs of other kinds than most: each is right, or refused in a line that names it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

import convsurgeon as cs
from tests import nets

X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(24, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def _convert(model: nn.Module, example: object = X, images: object = IMAGES, **how: Any) -> cs.Result:
    forms = [cs.DepthwiseSeparable(rank=2)]
    return cs.convert(model, example, calibration=images, progress=False, **({"forms": forms} | how))


# Inputs and outputs


class Spectrum(nn.Module):
    """Takes complex numbers, as from a scanner."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 8, 3), nn.Conv2d(8, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(torch.view_as_real(x)[:, 0].permute(0, 3, 1, 2))))


class Sparse(nets.Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).to_sparse()


class InPairs(nets.Plain):
    """Takes two images, no more and no fewer."""

    def forward(self, x: Tensor) -> Tensor:
        assert len(x) == 2
        return super().forward(x)


def test_complex_inputs_are_images_too() -> None:
    given = torch.randn(24, 1, 12, 12, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    assert set(_convert(Spectrum().eval(), given[:1], given).changes) == {"second"}


@pytest.mark.filterwarnings("ignore:calibration. no gradients:UserWarning")
def test_sparse_outputs_are_judged_by_their_values() -> None:
    result = _convert(Sparse().eval())
    assert set(result.changes) == {"body", "down"}
    assert 0 < result.report.fidelity.sqnr_db < 100


def test_a_network_of_one_batch_size_keeps_its_gradients(recwarn: pytest.WarningsRecorder) -> None:
    assert set(_convert(InPairs().eval()).changes) == {"body", "down"}
    assert not [str(one.message) for one in recwarn if "gradients" in str(one.message)]


# Images


class Items(Dataset[Any]):
    """A data set of 24 items, which is one of a user's own."""

    def __init__(self, item: Callable[[int], Any]) -> None:
        self.item = item

    def __len__(self) -> int:
        return 24

    def __getitem__(self, row: int) -> Any:
        return self.item(row)


class Unsized(Dataset[Any]):
    def __getitem__(self, row: int) -> Tensor:
        return IMAGES[row]


class Streamed(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Tensor]:
        yield from IMAGES[:3]
        raise KeyError("shard 7")


def _breaking(row: int) -> Tensor:
    if row == 7:
        raise OSError("disk gone")
    return IMAGES[row]


def _stream() -> Iterator[Tensor]:
    yield IMAGES[:8]
    raise OSError("disk gone")


def _for_detection(items: list[Any]) -> tuple[Any, ...]:
    return tuple(zip(*items, strict=True))


READ: dict[str, Callable[[], Any]] = {
    "dicts with paths, one at a time": lambda: DataLoader(
        Items(lambda row: {"image": IMAGES[row], "label": row, "path": f"{row}.png"}), batch_size=1
    ),
    "dicts of arrays with keys": lambda: [{"npy": one.numpy(), "__key__": str(row)} for row, one in enumerate(IMAGES)],
    "tuples of images and targets": lambda: DataLoader(
        Items(lambda row: (IMAGES[row], {"boxes": torch.zeros(row % 3, 4)})), batch_size=4, collate_fn=_for_detection
    ),
    "arrays of another order of bytes": lambda: IMAGES.numpy().astype(">f4"),
    "arrays that run backwards": lambda: IMAGES.numpy()[:, ::-1],
    "images of several sizes": lambda: cs.Images([torch.rand(3, 12 + row % 3, 14) for row in range(24)], size=12),
}


@pytest.mark.parametrize("kind", READ)
def test_images_as_loaders_give_them_are_read(kind: str) -> None:
    assert set(_convert(nets.Plain().eval(), images=READ[kind]()).changes) == {"body", "down"}


NAMED: dict[str, Callable[[], Any]] = {
    r"item 7 of Items fails: OSError: disk gone": lambda: Items(_breaking),
    r"DataLoader fails at batch 1: OSError": lambda: DataLoader(Items(_breaking), batch_size=4),
    r"generator fails at batch 1: OSError: disk gone": _stream,
    r"DataLoader fails at batch 0: KeyError": lambda: Streamed(),
    r"Unsized": Unsized,
    r"differ in size \(3x12x12, 3x13x12, 3x14x12\)": lambda: [torch.randn(3, 12 + row % 3, 12) for row in range(24)],
}


@pytest.mark.parametrize("named", NAMED)
def test_what_fails_in_a_users_own_data_is_named(named: str) -> None:
    with pytest.raises(cs.errors.CalibrationError, match=named):
        _convert(nets.Plain().eval(), images=NAMED[named]())


# Layers


@pytest.mark.parametrize(
    ("name", "value"), [("running_var", -1.0), ("running_var", math.inf), ("running_mean", math.nan)]
)
def test_a_norm_that_no_training_leaves_is_named(name: str, value: float) -> None:
    model: Any = nets.Plain().eval()
    getattr(model.norm, name)[2] = value
    with pytest.raises(cs.errors.CalibrationError, match=r"norm: its running"):
        _convert(model)


class Helped(nets.Plain):
    """Has batch norms in a head for training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.aside = nn.Identity(), nn.BatchNorm2d(16)
        self.aside.running_mean += 1

    def forward(self, x: Tensor) -> Any:
        found = super().forward(x)
        return (found, self.aside(self.stem(x))) if self.training else found


@pytest.mark.parametrize("images", [IMAGES, None])
def test_norms_that_run_in_training_alone_say_nothing_of_images(images: Any) -> None:
    given = cs.Images(limit=12) if images is None else images
    assert set(_convert(Helped().eval(), images=given).changes) == {"body", "down"}


class OneByOne(nets.Plain):
    """Vectorises its convs over the images."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.func.vmap(lambda one: self.body(torch.relu(self.stem(one[None])))[0])(x)
        return self.head(torch.relu(self.down(torch.relu(self.norm(x)))).mean((2, 3)))


def test_convs_inside_of_a_transform_are_left() -> None:
    result = _convert(OneByOne().eval())
    assert set(result.changes) == {"down"}
    assert "vmap" in next(skip.reason for skip in result.skipped if skip.name == "body")


@pytest.mark.parametrize("name", ["stem", "body"])
def test_a_weight_that_a_transposed_conv_shares_is_left(name: str) -> None:
    class Mirrored(nets.Plain):
        """An autoencoder whose decoder is its encoder's transpose."""

        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose2d(*getattr(self, name).weight.shape[:2], 3, padding=1)
            self.up.weight = getattr(self, name).weight

        def forward(self, x: Tensor) -> Tensor:
            own = torch.relu(self.stem(x))
            own = own if name == "stem" else self.body(own)
            return self.up(own)

    model = Mirrored().eval()
    result = _convert(model)
    assert name not in result.changes
    assert result.model.up.weight is getattr(result.model, name).weight  # type: ignore[union-attr]
    assert "tied" in next(skip.reason for skip in result.skipped if skip.name == name)


# Arguments


@pytest.fixture(scope="module")
def result() -> cs.Result:
    torch.manual_seed(0)
    return _convert(nets.Plain().eval())


@pytest.mark.parametrize(
    ("how", "named"),
    [
        *(({"goal": goal}, "goal") for goal in ("macs=0.5", 0.5, {"macs": 0.5}, cs.Within)),
        *(({"runtime": runtime, "goal": cs.Budget(latency=0.5)}, "runtime") for runtime in (4, "int8")),
        *(({"seed": seed}, "seed") for seed in (1.5, "3", None, 10**17)),
        ({"minutes": "3"}, "minutes"),
    ],
)
def test_arguments_of_another_type_are_refused(how: dict[str, Any], named: str) -> None:
    with pytest.raises(cs.ConvSurgeonError, match=named):
        _convert(nets.Plain().eval(), **({"forms": None} | how))


@pytest.mark.parametrize("seed", [10**17 - 1, -(10**17) + 1, np.int64(10**16), True])
def test_every_seed_that_is_taken_gives_gradients_and_a_joint_fit(seed: int, recwarn: pytest.WarningsRecorder) -> None:
    _convert(nets.Plain().eval(), seed=seed)
    assert not [str(one.message) for one in recwarn if "calibration" in str(one.message)]


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda _: cs.recover(nets.Plain(), IMAGES), "recover.*Plain"),
        (lambda result: cs.recover(result, IMAGES, recipe={"epochs": 1}), "Recipe.*dict"),
        (lambda result: cs.recover(result, IMAGES, run=3), "run.*int"),
        (lambda _: cs.export(nets.Plain(), "out"), "export.*Plain"),
        (lambda result: cs.export(result, None), "path.*NoneType"),
        (lambda _: cs.rebuild(nets.Plain(), "plan.json"), "plan.*str"),
        (lambda result: cs.rebuild(None, result.plan), "model.*NoneType"),
        (lambda result: cs.export(result, "out", runtime=3), "runtime.*int"),
        (lambda result: cs.export(result, "out", pairs="many"), "pairs.*str"),
        (lambda result: cs.onnx.export(result, X, "a.onnx"), "model.*Result"),
        (lambda result: cs.onnx.export(result.model, X[:0], "a.onnx"), "example"),
        (lambda result: cs.onnx.export(result.model, X.to("meta"), "a.onnx"), "export.*meta"),
        (lambda _: cs.onnx.export(nets.Plain().to("meta"), X, "a.onnx"), "export.*meta"),
        (lambda _: cs.onnx.quantize(None, "a.onnx", IMAGES), "source.*NoneType"),
        (lambda _: cs.timing.compare(3, 4), "compare.*int"),
        (lambda _: cs.Plan.load(None), "path.*NoneType"),
        (lambda _: cs.plan(nets.Plain(), X, forms=3), "forms.*int"),
        (lambda _: cs.plan(nets.Plain(), X, forms={None: None}), "forms.*NoneType"),
        (lambda _: cs.select.parse(3), "policy.*int"),
        (lambda _: cs.Energy("0.5"), "Energy.*0.5"),
        (lambda _: cs.Within(1.0, metric=3), "metric"),
        (lambda _: cs.Recipe(epochs="3"), "epochs"),
        (lambda _: cs.Recipe(hold_back=1.5), "hold_back"),
        (lambda _: cs.Recipe(seed=-1), "seed"),
        (lambda _: cs.Recipe(seed=0.5), "seed"),
    ],
)
def test_what_another_function_takes_is_refused(
    call: Callable[[cs.Result], object], named: str, result: cs.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(cs.ConvSurgeonError, match=named):
        call(result)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("tolerance", [None, 0.01])
@pytest.mark.parametrize("metric", [None, len])
def test_a_goal_is_printed_before_it_is_used(tolerance: Any, metric: Any) -> None:
    assert ("len" if metric else "error") in str(cs.Within(tolerance, metric=metric))


@pytest.mark.parametrize("images", [np.zeros((4, 3, 16, 16), object), np.full((4, 3, 16, 16), "0.5")])
def test_arrays_of_objects_and_text_are_refused(images: np.ndarray) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()
    with pytest.raises(cs.errors.CalibrationError, match=re.escape(str(images.dtype))):
        cs.convert(model, torch.zeros(1, 3, 16, 16), calibration=images, progress=False)
