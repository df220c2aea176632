from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from convsurgeon.base.errors import ExportError
from convsurgeon.bundle.mobile import mobile_check
from convsurgeon.onnx.exporter import export
from tests.onnx.small import net

IMAGE = (1, 3, 12, 12)


def test_a_converted_network_is_taken_whole(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = mobile_check(export(net(), torch.randn(IMAGE), tmp_path / "net.onnx").path)
    assert found.suitable
    by_name = {one.provider: one for one in found.providers}
    assert list(by_name) == ["NNAPI", "CoreML NeuralNetwork", "CoreML MLProgram", "XNNPACK"]
    for name in list(by_name)[:3]:
        assert (by_name[name].pieces, by_name[name].taken, by_name[name].blocking) == (1, by_name[name].nodes, ())
    assert found.dynamic == ()
    assert capfd.readouterr() == ("", "")


def test_a_dynamic_batch_is_not(tmp_path: Path) -> None:
    found = mobile_check(export(net(), torch.randn(IMAGE), tmp_path / "net.onnx", dynamic="batch").path)
    assert not found.suitable
    assert found.dynamic == ("x",)
    assert "note: input x has no static shape" in str(found)
    assert "stem (Conv)" in found.providers[0].blocking


def test_blocking_nodes_have_the_names_of_their_modules(tmp_path: Path) -> None:
    class Swish(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.act, self.head = nn.Conv2d(3, 4, 3), nn.Hardswish(), nn.Conv2d(4, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.act(self.stem(x)))

    found = mobile_check(export(Swish(), torch.randn(IMAGE), tmp_path / "swish.onnx").path)
    nnapi = found.providers[0]
    assert nnapi.suitable == "no"
    assert nnapi.pieces == 2
    # The runtime takes HardSwish apart; its part is still called after the module.
    assert nnapi.blocking == ("act (HardSigmoid)",)


def test_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"garbage")
    with pytest.raises(ExportError, match=r"bad\.onnx: is not a"):
        mobile_check(tmp_path / "bad.onnx")
