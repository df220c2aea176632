"""The laws for files: exact at full rank, nothing else touched, nothing silent, the same answer whatever the road."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import convsurgeon as cs
from convsurgeon.onnxnet import proto
from tests.growing import convert_growing
from tests.onnxnet.files import FILES, feed_of, nothing_else_touched, plain, run, saved, shared

FORMS = (cs.CP, cs.DepthwiseSeparable, cs.Blueprint)


def converted(path: Path, form: Any, folder: Path, **more: Any) -> tuple[cs.Result, Path]:
    """A file with the form wherever it fits, and the file that comes of it."""
    result = convert_growing(
        path, forms=[form], policy=cs.select.everything(), calibration=False, progress=False, **more
    )
    made = folder / "made.onnx"
    cs.onnx.export(result.model, None, made, overwrite=True)
    return result, made


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, marks=() if index % len(FORMS) == place else pytest.mark.slow)
        for index, name in enumerate(FILES)
        for place, kind in enumerate(FORMS)
    ],
)
def test_at_full_rank_the_file_computes_the_same_and_nothing_else_is_touched(
    name: str, kind: Any, tmp_path: Path
) -> None:
    model = FILES[name]()
    path = saved(model, tmp_path)
    data = path.read_bytes()
    result, made = converted(path, kind(rank=cs.Energy(1.0)), tmp_path)
    feed = feed_of(path)
    for wanted, found in zip(run(path, feed), run(made, feed), strict=True):
        limit = 3e-2 if wanted.dtype == np.float16 else 1e-5
        assert np.abs(found.astype(float) - wanted).max() <= limit * np.abs(wanted).max()
    assert path.read_bytes() == data
    replaced = {output for name in result.changes for output in result.model.file_conv(name).sizes}
    nothing_else_touched(path, made, replaced)
    # and every conv is changed, or skipped with a reason
    nodes = [node for graph in proto.graphs(model.graph) for node in graph.node if "Conv" in node.op_type]
    steps = result.plan.steps
    assert sum(max(1, len(step.site.calls)) for step in steps) == len(nodes)
    assert all(skip.reason for skip in result.skipped)
    assert len({step.name for step in steps}) == len(steps)


def test_a_file_that_stays_as_it_is_stays_so_to_the_byte(tmp_path: Path) -> None:
    path = saved(plain(), tmp_path)
    result = cs.convert(path, forms=[cs.CP(rank=1)], policy=~cs.select.everything(), calibration=False)
    cs.onnx.export(result.model, None, tmp_path / "made.onnx")
    assert (tmp_path / "made.onnx").read_bytes() == path.read_bytes()


def test_predicted_costs_are_those_of_the_file_that_is_written(tmp_path: Path) -> None:
    path = saved(plain(), tmp_path)
    result, made = converted(path, cs.CP(rank=6), tmp_path)
    after = cs.capture(made).cost
    assert (after.params, after.macs) == (result.plan.params_after, result.plan.macs_after)


def test_a_shared_conv_is_replaced_once_and_stays_shared(tmp_path: Path) -> None:
    path = saved(shared(), tmp_path)
    result, made = converted(path, cs.DepthwiseSeparable(rank=2), tmp_path)
    assert {name: len(change.site.calls) for name, change in result.changes.items()} == {
        "first": 2,
        "dilated": 1,
        "bare": 1,
    }
    graph = onnx.load(made).graph
    first, again = (
        [node.input[1] for node in graph.node if node.name.startswith(f"{name}.") and node.op_type == "Conv"]
        for name in ("first", "again")
    )
    assert first
    assert first == again


def test_plan_and_weights_rebuild_the_file_to_the_bit(tmp_path: Path) -> None:
    path = saved(plain(), tmp_path)
    images = torch.randn(80, 4, 9, 9)
    result = cs.convert(path, forms=[cs.CP(rank=6)], calibration=images, progress=False)
    bundle = cs.export(result, tmp_path / "out", pairs=0, progress=False)
    plan = cs.Plan.load(bundle.folder / "plan.json")
    again = cs.rebuild(bundle.folder / "original.onnx", plan, bundle.folder / "weights.safetensors")
    cs.onnx.export(again, None, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (bundle.folder / "model.onnx").read_bytes()
    assert (bundle.folder / "original.onnx").read_bytes() == path.read_bytes()


class Small(nn.Module):
    """Without batch norms, so that the exporter folds nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 16, 3, 2, 1))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.head(torch.relu(self.body(x)).mean((2, 3)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_same_answer_whatever_the_road(dynamo: bool, tmp_path: Path) -> None:
    model, x, images = Small().eval(), torch.randn(1, 3, 12, 12), torch.randn(64, 3, 12, 12)
    path = tmp_path / "exported.onnx"
    torch.onnx.export(model, (x,), path, dynamo=dynamo, external_data=False, verbose=False)
    how: dict[str, Any] = {"forms": [cs.DepthwiseSeparable(rank=4)], "calibration": images, "progress": False}
    by_torch, by_file = cs.convert(model, x, **how), cs.convert(path, x, **how)
    assert list(by_torch.changes) == list(by_file.changes) == ["body.0", "body.2"]
    # the fits agree: the same data, the same neighbours, the same sensitivities
    wanted, found = by_torch.model(images), by_file.model(images)
    assert (wanted - found).abs().max() < 0.02 * wanted.std()
    # by the same weights both compute the same, and so do their files
    state = {name: tensor for name, tensor in by_torch.model.state_dict().items() if name in by_file.model.state_dict()}
    by_file.model.load_state_dict(state, strict=False)
    torch.testing.assert_close(by_file.model(images), wanted, rtol=1e-5, atol=1e-5)
    cs.onnx.export(by_file.model, x, tmp_path / "one.onnx")
    cs.onnx.export(by_torch.model, x, tmp_path / "two.onnx")
    for seed in range(3):
        given = np.random.default_rng(seed).standard_normal((1, 3, 12, 12)).astype(np.float32)
        one, two = (
            run(tmp_path / name, dict.fromkeys(feed_of(tmp_path / name), given))[0] for name in ("one.onnx", "two.onnx")
        )
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)
