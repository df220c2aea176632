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
def _short_timings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests look at what is done with milliseconds, not at the milliseconds; and they leave the user's cache alone."""
    from convsurgeon.onnxnet.measuring import folder
    from convsurgeon.timing import interleaved

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONVSURGEON_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(folder, "SECONDS", 0.02)
        patch.setattr(interleaved, "_SAMPLE_S", 3e-4)
        yield


@pytest.fixture(autouse=True)
def _no_search_goes_on_from_another_test() -> None:
    for file in Path(os.environ["CONVSURGEON_CACHE"]).glob("search-*.json"):
        file.unlink()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
