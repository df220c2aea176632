"""Shared by all tests: torch's threads, hypothesis' profile, golden files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile("convsurgeon", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.load_profile("convsurgeon")
torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the golden files with what the code prints")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compares a text with a file under tests/golden."""

    def compare(name: str, text: str) -> None:
        path = Path(__file__).parent / "golden" / name
        if request.config.getoption("--update-golden"):
            path.write_text(text, encoding="utf-8")
        assert text == path.read_text(encoding="utf-8"), f"{name} differs; look at it, then --update-golden"

    return compare


@pytest.fixture(autouse=True, scope="session")
def _in_less_time(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Tests look at what is done with milliseconds and steps, not at how many; and they leave the user's cache alone.

    Yields the joint fit's epochs, of which they take one.
    """
    from convsurgeon.distill import joint
    from convsurgeon.onnxnet.measuring import folder
    from convsurgeon.timing import interleaved

    epochs = joint.EPOCHS
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONVSURGEON_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(folder, "SECONDS", 0.02)
        patch.setattr(interleaved, "_SAMPLE_S", 3e-4)
        patch.setattr(joint, "EPOCHS", 1)
        yield epochs


@pytest.fixture
def all_epochs(_in_less_time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the joint fit take all its epochs, as users do."""
    from convsurgeon.distill import joint

    monkeypatch.setattr(joint, "EPOCHS", _in_less_time)


@pytest.fixture(autouse=True)
def _no_search_goes_on_from_another_test() -> None:
    for file in Path(os.environ["CONVSURGEON_CACHE"]).glob("search-*.json"):
        file.unlink()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
